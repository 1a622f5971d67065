"""The parity measures against plain formulas, and the gates."""

import json
import weakref

import numpy as np
import pytest
import torch

from export.verification.parity import (
    LARGEST_LIMIT,
    ROUNDING_ALLOWANCE,
    Parity,
    broken_limits,
    compare,
    fixed_blocks,
    rounding_of,
    torch_logits,
    widen,
)
from shearling.registry.number_formats import NUMBER_FORMATS, Gate
from shearling.strict_json import read_document, write_document
from tests.support.tiny_models import FAMILIES, VOCABULARY, tiny_tokenizer


def random_logits(seed, blocks):
    generator = np.random.default_rng(seed)
    return [generator.normal(size=(len(block), VOCABULARY)).astype(np.float32) for block in blocks]


@pytest.fixture
def blocks():
    return fixed_blocks(tiny_tokenizer(), vocabulary=VOCABULARY)


def test_blocks_are_fixed_and_within_the_vocabulary(blocks):
    again = fixed_blocks(tiny_tokenizer(), vocabulary=VOCABULARY)
    assert all(np.array_equal(left, right) for left, right in zip(blocks, again, strict=True))
    assert len(blocks) >= 2
    assert all(block.min() >= 0 and block.max() < VOCABULARY for block in blocks)


def test_equal_logits_have_no_distance(blocks):
    logits = random_logits(0, blocks)
    parity = compare(logits, logits, blocks)
    assert (parity.max_abs, parity.mean_abs, parity.kl_mean, parity.kl_max, parity.top1_agreement) == (0, 0, 0, 0, 1)
    assert parity.perplexity == parity.reference_perplexity
    assert broken_limits(NUMBER_FORMATS.get("fp32").gate, parity) == []


def test_measures_equal_torch_in_float64(blocks):
    reference, candidate = random_logits(0, blocks), random_logits(1, blocks)
    parity = compare(reference, candidate, blocks)
    left, right = (torch.from_numpy(np.concatenate(logits)).double() for logits in (reference, candidate))
    kl = torch.nn.functional.kl_div(right.log_softmax(-1), left.log_softmax(-1), log_target=True, reduction="none").sum(
        -1
    )
    assert parity.kl_mean == pytest.approx(kl.mean().item(), rel=1e-9)
    assert parity.kl_max == pytest.approx(kl.max().item(), rel=1e-9)
    assert parity.max_abs == pytest.approx((left - right).abs().max().item())
    assert parity.top1_agreement == pytest.approx((left.argmax(-1) == right.argmax(-1)).double().mean().item())
    losses = [
        torch.nn.functional.cross_entropy(
            torch.from_numpy(logits[:-1]).double(), torch.from_numpy(block[1:]), reduction="none"
        )
        for logits, block in zip(candidate[:-1], blocks[:-1], strict=True)
    ]
    assert parity.perplexity == pytest.approx(torch.cat(losses).mean().exp().item(), rel=1e-9)


def test_a_candidate_is_measured_while_it_is_read(blocks):
    """A vocabulary makes the logits of all blocks larger than many a model."""
    made = []

    def in_turn():
        for logits in random_logits(1, [*blocks, *blocks]):
            made.append(weakref.ref(own := logits + 0))
            assert sum(earlier() is not None for earlier in made) <= 2
            yield own
            del own, logits

    many = [*blocks, *blocks]
    reference = random_logits(0, many)
    assert compare(reference, in_turn(), many) == compare(reference, random_logits(1, many), many)
    assert len(made) == len(many)


def test_a_gate_names_what_it_refuses(blocks):
    reference = random_logits(0, blocks)
    shifted = [logits.copy() for logits in reference]
    shifted[0][0, 0] += 0.01
    violations = broken_limits(NUMBER_FORMATS.get("fp32").gate, compare(reference, shifted, blocks))
    assert any("max |Δlogit| 0.01 exceeds 0.001" in line for line in violations)
    assert broken_limits(Gate(), compare(reference, random_logits(1, blocks), blocks)) == []


@pytest.mark.parametrize("block", [0, -2], ids=["first", "later"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_break_every_gate(blocks, tmp_path, value, block):
    reference = random_logits(0, blocks)
    broken = [logits.copy() for logits in reference]
    broken[block][3, 5] = value
    for parity in (compare(reference, broken, blocks), compare(broken, reference, blocks)):
        for gate in (Gate(), *(number_format.gate for number_format in NUMBER_FORMATS)):
            assert broken_limits(gate, parity) == ["the logits hold NaN or infinity"]
        write_document(tmp_path / "parity.json", parity)
        assert json.loads((tmp_path / "parity.json").read_text())["mean_abs"] is None
        assert not read_document(tmp_path / "parity.json", Parity).finite


def test_a_perplexity_beyond_all_numbers_is_reported(blocks, tmp_path):
    reference = random_logits(0, blocks)
    sure = [np.zeros_like(logits) for logits in reference]
    for logits, block in zip(sure, blocks, strict=True):
        logits[:, (block.max() + 1) % VOCABULARY] = 1e4
    parity = compare(reference, sure, blocks)
    assert parity.perplexity == np.inf
    assert parity.finite
    assert any("mean KL" in line for line in broken_limits(NUMBER_FORMATS.get("int4").gate, parity))
    write_document(tmp_path / "parity.json", parity)
    assert json.loads((tmp_path / "parity.json").read_text())["perplexity"] is None


@pytest.mark.parametrize("family", FAMILIES)
def test_rounding_is_small_on_a_sound_model_and_leaves_it_as_it_was(family, blocks):
    model = FAMILIES[family]().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rounding = rounding_of(model, blocks, torch_logits(model, blocks))
    assert 0 < rounding < 1e-5
    assert all(
        torch.equal(tensor, before[name]) and tensor.dtype == before[name].dtype
        for name, tensor in model.state_dict().items()
    )


def test_rounding_grows_with_what_amplifies_it(blocks):
    model = FAMILIES["llama"]().eval()
    sound = rounding_of(model, blocks, torch_logits(model, blocks))
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1000)
    assert rounding_of(model, blocks, torch_logits(model, blocks)) > 100 * sound


@pytest.mark.parametrize(("rounding", "limit"), [(1e-6, 1e-3), (1e-3, ROUNDING_ALLOWANCE * 1e-3), (1.0, LARGEST_LIMIT)])
def test_the_float32_gate_widens_with_the_rounding_and_nothing_else_does(rounding, limit):
    widened = widen(NUMBER_FORMATS.get("fp32").gate, rounding)
    assert (widened.max_abs, widened.kl_mean) == (limit, NUMBER_FORMATS.get("fp32").gate.kl_mean)
    assert widen(NUMBER_FORMATS.get("bf16").gate, rounding) == NUMBER_FORMATS.get("bf16").gate


def test_blocks_of_one_length_share_a_forward_where_weights_are_converted():
    blocks = [np.arange(5, 5 + length, dtype=np.int64) for length in (9, 9, 4, 9)]
    model = FAMILIES["llama"]()
    halved = FAMILIES["llama"]()
    for parameter in halved.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    for parameter, stored in zip(model.parameters(), halved.parameters(), strict=True):
        parameter.data = stored.data.float()
    forwards = []
    halved.register_forward_pre_hook(
        lambda _, __, inputs: forwards.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    found = torch_logits(halved, blocks)
    assert forwards == [(2, 9), (1, 4), (1, 9)]
    for left, right in zip(found, torch_logits(model, blocks), strict=True):
        assert left.shape == right.shape
        np.testing.assert_allclose(left, right, atol=1e-5)
