"""Wanda against brute force, and what must hold for any pruning (invariants 1 to 9)."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from shearling.calibration.propagation import capture
from shearling.errors import ModelUnsupported, NonFiniteWeights, RecipeInvalid
from shearling.model.layers import find_layers
from shearling.recipe.sparsity import ReconstructionSection
from tests.support.tiny_models import FAMILIES, VOCABULARY, bert
from tests.support.wanda_reference import assert_same_masks, lowest_of_each_block, lowest_of_each_row, wanda_reference
from train.sparsity.criteria.wanda import ChannelNorm, wanda_scores
from train.sparsity.pattern import SemiStructured, Unstructured, keep_mask
from train.sparsity.sparsify import sparsify

LENGTHS = (24, 24, 37, 9, 24, 50)


def text(lengths: tuple[int, ...] = LENGTHS, *, seed: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY, (length,), generator=generator) for length in lengths]


def layer_paths(model: nn.Module) -> list[str]:
    transformer = find_layers(model)
    return [f"{transformer.layers_path}.{index}" for index in range(len(transformer.layers))]


def wanda(
    model: nn.Module, ratio: float = 0.5, samples: list[Tensor] | None = None, batch_size: int = 1
) -> dict[str, Tensor]:
    return sparsify(model, samples or text(), method="wanda", pattern=Unstructured(ratio), batch_size=batch_size).masks


@pytest.mark.parametrize("family", FAMILIES)
def test_mask_equals_brute_force(family):
    model = FAMILIES[family]()
    expected, scores = wanda_reference(
        model, layer_paths(model), find_layers(model).linear_names, text(), lowest_of_each_row(0.5)
    )
    assert_same_masks(wanda(model), expected, scores)


@pytest.mark.parametrize(("zeros", "block"), [(2, 4), (4, 8)])
def test_semi_structured_mask_equals_brute_force_and_each_block_has_its_zeros(zeros, block):
    model = FAMILIES["mistral"]()
    expected, scores = wanda_reference(
        model, layer_paths(model), find_layers(model).linear_names, text(), lowest_of_each_block(zeros, block)
    )
    masks = sparsify(model, text(), method="wanda", pattern=SemiStructured(zeros, block)).masks
    assert_same_masks(masks, expected, scores)
    for mask in masks.values():
        assert ((~mask).view(-1, block).sum(dim=1) == zeros).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_propagation_reproduces_the_models_own_hidden_states(family):
    model = FAMILIES[family]()
    transformer = find_layers(model)
    states = capture(model, transformer, text(), batch_size=2)
    own: list[list[Tensor]] = [[] for _ in transformer.layers]
    hooks = [
        layer.register_forward_hook(
            lambda _m, _i, output, seen=seen: seen.append(output[0] if isinstance(output, tuple) else output)
        )
        for layer, seen in zip(transformer.layers, own, strict=True)
    ]
    with torch.no_grad():
        for group in (text()[0:2], text()[2:3], text()[3:4], text()[4:5], text()[5:6]):
            model(input_ids=torch.stack(group), use_cache=False)
    for hook in hooks:
        hook.remove()
    for layer, seen in zip(transformer.layers, own, strict=True):
        states.advance(layer)
        for batch, output in zip(states.batches, seen, strict=True):
            assert torch.equal(batch.hidden, output)


@pytest.mark.parametrize("family", ["llama", "phi3", "bloom"])
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.7])
def test_every_row_has_exactly_its_zeros_and_the_rest_is_untouched(family, ratio):
    before = FAMILIES[family]()
    model = copy.deepcopy(before)
    masks = wanda(model, ratio)
    original, linears = dict(before.named_parameters()), find_layers(model).linears()
    assert masks.keys() == linears.keys()
    for path, mask in masks.items():
        assert ((~mask).sum(dim=1) == int(mask.shape[1] * ratio)).all()
        weight = linears[path].weight
        assert torch.equal(weight[mask], original[f"{path}.weight"][mask])
        assert not weight[~mask].any()
    for name, parameter in model.named_parameters():
        if name.removesuffix(".weight") not in masks:
            assert torch.equal(parameter, original[name]), name


def test_ratio_zero_changes_nothing():
    before = FAMILIES["qwen2"]()
    model = copy.deepcopy(before)
    assert all(mask.all() for mask in wanda(model, 0.0).values())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))


def test_masks_are_nested_in_the_first_layer():
    model = FAMILIES["llama"]()
    fewer, more = wanda(copy.deepcopy(model), 0.4), wanda(copy.deepcopy(model), 0.5)
    for path in fewer:
        if ".layers.0." in path:
            assert not (more[path] & ~fewer[path]).any()


def test_later_layers_see_pruned_ones():
    model = FAMILIES["llama"]()
    names = find_layers(model).linear_names
    one_shot, scores = wanda_reference(
        model, layer_paths(model), names, text(), lowest_of_each_row(0.5), propagate=False
    )
    found = wanda(model)
    first = {path: mask for path, mask in found.items() if ".layers.0." in path}
    assert_same_masks(first, {path: one_shot[path] for path in first}, scores)
    assert any(not torch.equal(found[path], one_shot[path]) for path in found if path not in first)


def test_sample_order_and_batch_size_do_not_matter():
    model = FAMILIES["gemma3"]()
    reference = wanda(copy.deepcopy(model))
    for samples, batch_size in ((text()[::-1], 1), (text(), 4), (text(), 1)):
        found = wanda(copy.deepcopy(model), samples=samples, batch_size=batch_size)
        different = sum(int((found[path] != reference[path]).sum()) for path in found)
        assert different <= 4, (
            f"{different} bits"
        )  # two scores that agree to float32 may swap where sums are ordered otherwise
    again = wanda(copy.deepcopy(model))
    assert all(torch.equal(again[path], reference[path]) for path in again)


def test_norm_is_the_full_norm_up_to_a_constant():
    samples = [torch.randn(length, 11) for length in (3, 8, 1)]
    norm = ChannelNorm()
    for sample in samples:
        norm.add(sample[None])
    full = torch.cat(samples).double().square().sum(dim=0)
    torch.testing.assert_close(norm.mean_square.double() * 3, full, rtol=1e-6, atol=0)


def test_norms_of_half_precision_are_summed_in_float32():
    inputs = torch.randn(2, 300, 7).bfloat16()
    norm = ChannelNorm()
    norm.add(inputs)
    expected = inputs.double().square().sum(dim=(0, 1)) / 2
    torch.testing.assert_close(norm.mean_square.double(), expected, rtol=1e-5, atol=0)


def test_one_channel_that_is_not_finite_is_refused():
    inputs = torch.ones(1, 4, 6)
    inputs[0, 2, 5] = torch.inf
    norm = ChannelNorm()
    norm.add(inputs)
    with pytest.raises(NonFiniteWeights, match="calibration inputs"):
        wanda_scores(torch.ones(3, 6), norm, where="")


def test_scaling_the_inputs_leaves_the_mask():
    weight, inputs = torch.randn(7, 20), torch.randn(1, 30, 20)
    masks = []
    for factor in (1.0, 16.0, 0.03125):
        norm = ChannelNorm()
        norm.add(inputs * factor)
        masks.append(keep_mask(wanda_scores(weight, norm, where=""), Unstructured(0.5), where=""))
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2])


def test_silent_channels_go_first_and_equal_channels_mean_magnitude():
    weight, inputs = torch.randn(5, 12), torch.ones(1, 4, 12)
    norm = ChannelNorm()
    norm.add(inputs)
    by_magnitude = keep_mask(weight.abs(), Unstructured(0.5), where="")
    assert torch.equal(keep_mask(wanda_scores(weight, norm, where=""), Unstructured(0.5), where=""), by_magnitude)
    inputs[..., 7] = 0
    silent = ChannelNorm()
    silent.add(inputs)
    assert not keep_mask(wanda_scores(weight, silent, where=""), Unstructured(0.1), where="")[:, 7].any()


def test_ties_go_to_the_lower_column():
    scores = torch.tensor([[1.0, 0.0, 1.0, 1.0, 2.0], [3.0, 3.0, 3.0, 3.0, 3.0]])
    assert keep_mask(scores, Unstructured(0.4), where="").tolist() == [
        [False, False, True, True, True],
        [False, False, True, True, True],
    ]


@pytest.mark.parametrize("ratio", [0.1, 0.29, 0.5, 0.93])
def test_selection_equals_a_stable_sort(ratio):
    scores = torch.randint(0, 6, (40, 57)).float()
    mask = torch.ones_like(scores, dtype=torch.bool)
    order = scores.sort(dim=1, stable=True).indices[:, : int(57 * ratio)]
    mask.scatter_(1, order, False)
    assert torch.equal(keep_mask(scores, Unstructured(ratio), where=""), mask)


def test_counts_are_those_of_the_papers():
    for width, ratio, share in ((576, 0.4, 0.39931), (577, 0.5, 0.49913), (11008, 0.4, 0.39998)):
        mask = keep_mask(torch.rand(1, width), Unstructured(ratio), where="")
        assert round(1 - mask.float().mean().item(), 5) == share


def test_magnitude():
    model = FAMILIES["llama_tied_gqa"]()
    weights = {path: linear.weight.detach().clone() for path, linear in find_layers(model).linears().items()}
    for path, mask in sparsify(model, [], method="magnitude", pattern=Unstructured(0.6)).masks.items():
        kept, gone = weights[path].abs().where(mask, torch.inf), weights[path].abs().where(~mask, -torch.inf)
        assert (kept.amin(dim=1) >= gone.amax(dim=1)).all()


def test_bad_requests_leave_the_model_alone():
    model = FAMILIES["llama_tied_gqa"]()
    before = copy.deepcopy(model)
    with pytest.raises(RecipeInvalid, match="calibration"):
        sparsify(model, [], method="wanda", pattern=Unstructured(0.5))
    with pytest.raises(ModelUnsupported, match="multiple of 8") as caught:
        sparsify(model, text(), method="wanda", pattern=SemiStructured(4, 8))
    assert "q_proj" in caught.value.where
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))


def test_rows_that_do_not_fit_are_found_before_any_weight_changes():
    """Rows of 48 have blocks of 16, those of 88 in down_proj have not."""
    model = FAMILIES["llama"]()
    before = copy.deepcopy(model)
    for method in ("wanda", "magnitude"):
        with pytest.raises(ModelUnsupported, match="multiple of 16") as caught:
            sparsify(model, text(), method=method, pattern=SemiStructured(8, 16))
        assert caught.value.where == "model.layers.0.mlp.down_proj"
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))


def test_scores_of_rows_that_do_not_fit_are_refused():
    """Also where all rows together could be cut into blocks."""
    with pytest.raises(ModelUnsupported, match="rows of 6 weights"):
        keep_mask(torch.rand(4, 6), SemiStructured(2, 4), where="")


@pytest.mark.parametrize("method", ["wanda", "magnitude"])
@pytest.mark.parametrize("swaps", [0, 2])
def test_every_layer_has_the_pattern_that_it_is_given(method, swaps):
    model, ratios = FAMILIES["llama"](), (0.25, 0.5, 0.75)
    section = ReconstructionSection(swaps=swaps, matrix_steps=1) if swaps else None
    patterns = [Unstructured(ratio) for ratio in ratios]
    masks = sparsify(model, text((24, 24)), method=method, pattern=patterns, reconstruction=section).masks
    for index, ratio in enumerate(ratios):
        for path in find_layers(model).linears_of(index):
            assert ((~masks[path]).sum(dim=1) == int(masks[path].shape[1] * ratio)).all()


def test_dropout_has_no_part_in_it_and_training_goes_on_after():
    trained, evaluated = bert().train(), bert()
    assert trained.config.hidden_dropout_prob > 0
    masks, expected = wanda(trained, samples=text((24, 24))), wanda(evaluated, samples=text((24, 24)))
    assert all(masks[path].equal(mask) for path, mask in expected.items())
    assert trained.training
    assert not evaluated.training
    assert not any(parameter.requires_grad for parameter in trained.parameters())


def test_an_empty_sample_is_refused():
    with pytest.raises(RecipeInvalid, match="no empty sample"):
        wanda(FAMILIES["llama_tied_gqa"](), samples=[*text((9,)), torch.zeros(0, dtype=torch.int64)])


def test_nonfinite_activations_are_named():
    model = FAMILIES["llama"]()
    with torch.no_grad():
        model.get_input_embeddings().weight[int(text()[0][0])] = torch.nan
    with pytest.raises(NonFiniteWeights, match="calibration inputs") as caught:
        wanda(model)
    assert caught.value.where == "model.layers.0.self_attn.q_proj"
