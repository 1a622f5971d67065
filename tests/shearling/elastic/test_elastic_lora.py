"""The elastic adapter against einsum, against PEFT, and against itself at other ranks (invariants 11 to 16, 18, 36,
37)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from shearling.elastic.elastic_lora import ElasticLoraLinear, effective_weight
from shearling.errors import NonFiniteWeights, ShapeMismatch

OUT, IN, R_MAX, SCALING = 13, 11, 6, 2.0


def make_layer(
    *,
    masked: bool,
    seed: int = 0,
    bias: bool = False,
    dtype: torch.dtype = torch.float32,
    size: tuple[int, int] = (OUT, IN),
) -> ElasticLoraLinear:
    generator = torch.Generator().manual_seed(seed)
    base = nn.Linear(size[1], size[0], bias=bias).to(dtype)
    with torch.no_grad():
        base.weight.copy_(torch.randn(size, generator=generator))
        mask = torch.rand(size, generator=generator) > 0.5
        if masked:
            base.weight.mul_(mask)
    layer = ElasticLoraLinear(base, r_max=R_MAX, scaling=SCALING, mask=mask if masked else None, generator=generator)
    with torch.no_grad():
        layer.lora_b.copy_(torch.randn(size[0], R_MAX, generator=generator))
    return layer


@pytest.mark.parametrize("rank", [1, 3, R_MAX])
def test_masked_forward_is_the_formula(rank):
    layer = make_layer(masked=True)
    layer.activate(rank)
    x = torch.randn(2, 5, IN, dtype=torch.float64)
    delta = torch.einsum("or,ri->oi", layer.lora_b[:, :rank].double(), layer.lora_a[:rank].double())
    expected = torch.einsum("bti,oi->bto", x, layer.weight.double() + SCALING * delta * layer.mask)
    torch.testing.assert_close(layer(x.float()).double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rank", [1, 3, R_MAX])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
def test_masked_merge_is_bit_exact_with_the_training_forward(rank, bias, autocast):
    # Wide enough for a product that is summed in blocks: a bias added behind it is rounded once more.
    out, width = 96, 576
    layer = make_layer(masked=True, bias=bias, size=(out, width))
    layer.activate(rank)
    x = torch.randn(5, 7, width)
    merged = nn.Linear(width, out, bias=bias)
    merged.weight.data = layer.merged_weight()
    if bias:
        merged.bias.data = layer.bias.data
    layer.train()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        trained = layer(x)
        assert torch.equal(trained, merged(x))
    layer.hold_merged(hold=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert torch.equal(trained, layer(x))
    assert torch.equal(layer.merged_weight()[~layer.mask], torch.zeros(int((~layer.mask).sum())))


@pytest.mark.parametrize("masked", [True, False])
def test_zero_b_makes_every_rank_the_base(masked):
    layer = make_layer(masked=masked)
    nn.init.zeros_(layer.lora_b)
    x = torch.randn(3, IN)
    for rank in range(1, R_MAX + 1):
        layer.activate(rank)
        assert torch.equal(layer(x), F.linear(x, layer.weight))


@pytest.mark.parametrize("masked", [True, False])
def test_rank_r_uses_a_prefix_and_nothing_else(masked):
    layer, x = make_layer(masked=masked), torch.randn(3, IN)
    layer.activate(2)
    before = layer(x)
    with torch.no_grad():
        layer.lora_a[2:] = 1e6
        layer.lora_b[:, 2:] = -1e6
    assert torch.equal(layer(x), before)


@pytest.mark.parametrize("masked", [True, False])
def test_activation_equals_zeroed_rows(masked):
    cut, zeroed, x = make_layer(masked=masked), make_layer(masked=masked), torch.randn(3, IN)
    cut.activate(2)
    with torch.no_grad():
        zeroed.lora_a[2:] = 0
    torch.testing.assert_close(cut(x), zeroed(x), atol=1e-6, rtol=1e-6)


def test_adapters_start_as_those_of_peft():
    a = ElasticLoraLinear(nn.Linear(400, 3), r_max=R_MAX, scaling=SCALING, mask=None).lora_a.detach()
    # kaiming_uniform with a = sqrt(5) is uniform in +- 1 / sqrt(in).
    assert 0.95 / 20 < a.abs().max() <= 1 / 20
    assert abs(float(a.mean())) < 0.1 / 20


def test_dropout_is_on_the_input_of_the_adapter_while_training():
    base = nn.Linear(IN, OUT, bias=False)
    layer, x = ElasticLoraLinear(base, r_max=R_MAX, scaling=SCALING, mask=None, dropout=1.0), torch.randn(3, IN)
    nn.init.ones_(layer.lora_b)
    assert torch.equal(layer.train()(x), base(x))
    assert not torch.allclose(layer.eval()(x), base(x))


def test_scaling_does_not_follow_the_rank():
    layer = make_layer(masked=False)
    large, small = (
        effective_weight(layer.weight, layer.lora_a[:r], layer.lora_b[:, :r], scaling=SCALING) for r in (5, 3)
    )
    expected = SCALING * layer.lora_b[:, 3:5] @ layer.lora_a[3:5]
    torch.testing.assert_close(large - small, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("masked", [True, False])
def test_gradients_reach_the_prefix_only(masked):
    layer = make_layer(masked=masked)
    layer.activate(2)
    layer(torch.randn(4, IN)).square().sum().backward()
    assert layer.weight.grad is None
    assert layer.lora_a.grad[:2].abs().min() > 0
    assert not layer.lora_a.grad[2:].any()
    assert not layer.lora_b.grad[:, 2:].any()


@pytest.mark.parametrize("bias", [True, False])
def test_handwritten_gradient_equals_autograd(bias):
    layer = make_layer(masked=True, bias=bias)
    layer.activate(4)
    x = torch.randn(2, 3, IN, requires_grad=True)
    upstream = torch.randn(2, 3, OUT)
    ours = torch.autograd.grad(layer(x), (x, layer.lora_a, layer.lora_b), upstream)
    reference = F.linear(x, layer.weight + SCALING * (layer.lora_b[:, :4] @ layer.lora_a[:4]) * layer.mask, layer.bias)
    theirs = torch.autograd.grad(reference, (x, layer.lora_a, layer.lora_b), upstream)
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, atol=1e-4, rtol=1e-5)


def test_autocast_sums_in_float32_and_rounds_once():
    layer = make_layer(masked=True)
    x = torch.randn(4, IN)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, F.linear(x.bfloat16(), layer.merged_weight().bfloat16()))
    y.float().sum().backward()
    assert layer.lora_a.grad.dtype == torch.float32


@settings(max_examples=40)
@given(
    out=st.integers(1, 9),
    width=st.integers(1, 9),
    rank=st.integers(1, 4),
    kept=st.floats(0, 1),
    scaling=st.floats(0.01, 8),
    seed=st.integers(0, 999),
)
def test_masked_merge_never_revives_a_zero(out, width, rank, kept, scaling, seed):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(out, width, generator=generator) < kept
    weight = torch.randn(out, width, generator=generator) * mask
    a, b = torch.randn(rank, width, generator=generator), torch.randn(out, rank, generator=generator)
    merged = effective_weight(weight, a, b, scaling=scaling, mask=mask)
    assert not merged[~mask].any()
    dense = effective_weight(weight, a, b, scaling=scaling)
    assert torch.equal(dense, effective_weight(weight, a, b, scaling=scaling, mask=torch.ones_like(mask)))
    assert torch.equal(effective_weight(weight, a, torch.zeros_like(b), scaling=scaling, mask=mask), weight)


def test_held_merge_is_what_the_forward_computes_until_the_rank_changes():
    layer, x = make_layer(masked=True), torch.randn(4, IN)
    layer.activate(3)
    expected = layer(x)
    layer.hold_merged(hold=True)
    assert torch.equal(layer(x), expected)
    layer.activate(2)
    assert not torch.equal(layer(x), expected)


@pytest.mark.parametrize("rank", [0, -1, R_MAX + 1])
def test_rank_outside_the_adapter_is_refused(rank):
    with pytest.raises(ShapeMismatch, match=r"outside 1\.\.6"):
        make_layer(masked=False).activate(rank)


def test_shapes_that_do_not_fit_are_refused():
    weight, a, b = torch.zeros(3, 4), torch.zeros(2, 4), torch.zeros(3, 2)
    for bad in (
        {"weight": torch.zeros(4, 4)},
        {"lora_a": torch.zeros(3, 4)},
        {"lora_b": torch.zeros(3, 1)},
        {"mask": torch.ones(4, 3, dtype=torch.bool)},
    ):
        with pytest.raises(ShapeMismatch):
            effective_weight(**{"weight": weight, "lora_a": a, "lora_b": b, "mask": None, "scaling": 1.0, **bad})


@pytest.mark.parametrize("broken", ["nan", "inf", "-inf"])
def test_what_is_not_finite_in_the_adapter_is_found_when_merging(broken):
    layer = make_layer(masked=False)
    with torch.no_grad():
        layer.lora_a[0, 0] = float(broken)
    with pytest.raises(NonFiniteWeights):
        layer.merged_weight()


def test_a_mask_of_another_shape_is_refused_before_anything_runs():
    with pytest.raises(ShapeMismatch, match="mask"):
        ElasticLoraLinear(nn.Linear(4, 3), r_max=2, scaling=1.0, mask=torch.ones(4, 3, dtype=torch.bool))


def test_a_scaling_by_rank_depends_on_the_rank_alone():
    layer = ElasticLoraLinear(nn.Linear(IN, OUT), r_max=R_MAX, scaling=SCALING, mask=None, scales_by_rank=True)
    for rank in (3, 2, 1, R_MAX, 2):
        layer.activate(rank)
        assert layer.scaling == SCALING * R_MAX / rank


def test_a_plain_adapter_is_never_held_merged():
    layer, x = make_layer(masked=False), torch.randn(4, IN)
    expected = layer(x)
    layer.hold_merged(hold=True)
    assert torch.equal(layer(x), expected)


def test_a_held_merge_has_the_type_of_the_weight():
    layer, x = make_layer(masked=True, dtype=torch.bfloat16), torch.randn(4, IN).bfloat16()
    expected = layer(x)
    layer.hold_merged(hold=True)
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("frozen", ["lora_a", "lora_b"])
def test_one_factor_learns_as_before_where_the_other_is_frozen(frozen):
    layer, x = make_layer(masked=True), torch.randn(4, IN)
    other = {"lora_a": "lora_b", "lora_b": "lora_a"}[frozen]
    layer(x).square().sum().backward()
    expected = getattr(layer, other).grad.clone()
    layer.zero_grad()
    getattr(layer, frozen).requires_grad_(False)
    layer(x).square().sum().backward()
    assert torch.equal(getattr(layer, other).grad, expected)
    assert getattr(layer, frozen).grad is None


def test_the_first_factors_come_from_the_generator_and_the_mask_is_not_stored():
    first, second = (
        ElasticLoraLinear(
            nn.Linear(IN, OUT),
            r_max=R_MAX,
            scaling=SCALING,
            mask=torch.ones(OUT, IN, dtype=torch.bool),
            generator=torch.Generator().manual_seed(7),
        )
        for _ in range(2)
    )
    assert torch.equal(first.lora_a, second.lora_a)
    assert "mask" not in first.state_dict()
