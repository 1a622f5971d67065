"""Verdicts: which text a file is judged on, and what rejects it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import (
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from export.formats.classifier import OnnxClassifier, write_onnx_classifier
from export.verification import parity_check
from export.verification.parity import fixed_blocks, padded_batch, torch_logits
from export.verification.parity_check import MergedReference, check_merge
from export.verification.reading import MeasuredLogits, read_held_back
from shearling.evaluation.task import TaskRow, write_rows
from shearling.registry.number_formats import NUMBER_FORMATS
from tests.support.exported_files import stored_as
from tests.support.tiny_models import FAMILIES, VOCABULARY, bert, tiny_tokenizer


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> MergedReference:
    model, tokenizer = FAMILIES["llama"]().eval(), tiny_tokenizer()
    task = tmp_path_factory.mktemp("task")
    rows = [
        TaskRow(
            id=str(number),
            prompt=f"Report {number}: the quick brown fox jumps over the lazy dog, and",
            choices=None,
            gold=None,
            completion=" sleeps",
            text="",
        )
        for number in range(200)
    ]
    write_rows(task, "validation", rows)
    blocks = fixed_blocks(tokenizer, vocabulary=VOCABULARY)
    held_back = read_held_back(model, tokenizer, task, head="language_model")
    return MergedReference(model, "language_model", blocks, held_back)


def disturbed(logits, scale: float):
    random = np.random.default_rng(0)
    return [block + scale * random.normal(size=block.shape).astype(np.float32) for block in logits]


def test_integers_are_judged_on_held_back_rows_and_all_else_on_the_fixed_text(reference: MergedReference) -> None:
    for number_format in NUMBER_FORMATS:
        reading = reference.reading(number_format)
        assert (reading is reference.held_back) == (number_format.name in ("int8", "int4"))
    held_back = reference.held_back
    assert held_back is not None
    # The tiny model reads 256 positions, so that its windows are shorter.
    assert [len(block) for block in held_back.blocks] == [256] * 4
    alone = replace(reference, held_back=None)
    assert alone.reading(NUMBER_FORMATS.get("int4")) is alone.fixed


@pytest.mark.parametrize(("scale", "passes"), [(0.01, True), (2.0, False)])
def test_integers_that_change_what_the_model_says_are_rejected(
    reference: MergedReference, scale: float, passes: bool
) -> None:
    held_back = reference.held_back
    assert held_back is not None
    check = reference.check(MeasuredLogits("x", "int4", disturbed(held_back.logits, scale)), held_back)
    assert check.rejects != passes
    assert check.parity.positions == sum(len(block) for block in held_back.blocks)
    assert check.text == "validation rows"
    if not passes:
        assert any("mean KL" in line for line in check.violations)
        assert any("top-1 agreement" in line for line in check.violations)


def test_what_the_runtime_chose_is_reported_beside_torch_and_rejects_nothing(reference: MergedReference) -> None:
    halved = torch_logits(reference.model, reference.fixed.blocks, arithmetic="bfloat16")
    assert any(not np.array_equal(left, right) for left, right in zip(halved, reference.fixed.logits, strict=True))
    sound = reference.check(MeasuredLogits("x", "bf16", halved, chosen_by_runtime=True), reference.fixed)
    assert sound.torch_kl == pytest.approx(sound.parity.kl_mean)
    assert sound.verdict.startswith("ok, torch at bf16 has KL")
    wrong = disturbed(reference.fixed.logits, 2.0)
    broken = reference.check(MeasuredLogits("x", "bf16", wrong, chosen_by_runtime=True), reference.fixed)
    assert broken.violations
    assert not broken.rejects
    assert "reported only" in broken.verdict
    # The same logits of a file that is bfloat16 itself are refused.
    assert reference.check(MeasuredLogits("x", "bf16", wrong), reference.fixed).rejects


def test_a_runtime_is_not_excused_where_torch_overflows_as_well(
    reference: MergedReference, monkeypatch: pytest.MonkeyPatch
) -> None:
    overflown = [np.full_like(block, np.nan) for block in reference.fixed.logits]
    monkeypatch.setattr(parity_check, "torch_logits", lambda *_, **__: overflown)
    fresh = replace(reference)
    assert fresh.check(MeasuredLogits("x", "bf16", overflown, chosen_by_runtime=True), reference.fixed).rejects
    sound = fresh.check(MeasuredLogits("x", "bf16", reference.fixed.logits, chosen_by_runtime=True), reference.fixed)
    assert (sound.verdict, sound.torch_kl) == ("ok", None)


def test_what_is_no_number_is_refused_where_torch_has_one(reference: MergedReference) -> None:
    """In the arithmetic that users get by default, too: bf16 overflows no later than torch does in it."""
    overflown = [np.full_like(block, np.nan) for block in reference.fixed.logits]
    check = reference.check(MeasuredLogits("x", "bf16", overflown, chosen_by_runtime=True), reference.fixed)
    assert check.torch_kl is not None
    assert check.rejects
    assert "reported only" not in check.verdict


def test_a_widened_gate_is_said(reference: MergedReference, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity_check, "rounding_of", lambda *_, **__: 1e-3)
    fresh = replace(reference)
    logits = [block.copy() for block in reference.fixed.logits]
    logits[0][0, 0] += 2e-3
    check = fresh.check(MeasuredLogits("x", "fp32", logits), fresh.fixed)
    assert not check.rejects
    assert check.verdict == "ok: limit 4.0e-03, since float32 rounds the reference by 1.0e-03"


def test_a_merge_is_judged_by_the_same_gate(reference: MergedReference, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of large logits float32 makes a difference that no merge can avoid."""
    monkeypatch.setattr(parity_check, "rounding_of", lambda *_, **__: 1e-3)
    logits = [block.copy() for block in reference.fixed.logits]
    logits[0][0, 0] += 2e-3
    check = check_merge(logits, replace(reference), exact=True, precision="fp32")
    assert check.verdict == "ok: limit 4.0e-03, since float32 rounds the reference by 1.0e-03"
    logits[0][0, 0] += 8e-3
    assert check_merge(logits, replace(reference), exact=True, precision="fp32").rejects
    assert not check_merge(logits, replace(reference), exact=False, precision="fp32").rejects


def test_rows_of_a_padded_batch_say_what_they_say_alone(reference: MergedReference) -> None:
    batch = padded_batch(reference.fixed.blocks, head="language_model")
    assert len(set(batch.lengths)) == len(batch.lengths) >= 3
    feed = {name: torch.from_numpy(value) for name, value in batch.feed.items()}
    with torch.no_grad():
        logits = reference.model(**feed, use_cache=False).logits.numpy()
    check = reference.check(MeasuredLogits("x", "fp32", batch.rows_of(logits)), reference.fixed)
    assert check.parity.max_abs < 1e-4
    assert check.parity.positions == sum(batch.lengths)
    # Padding that is read as text changes them.
    with torch.no_grad():
        wrong = reference.model(input_ids=feed["input_ids"], use_cache=False).logits.numpy()
    assert reference.check(MeasuredLogits("x", "fp32", batch.rows_of(wrong)), reference.fixed).rejects


def test_a_classifier_is_asked_rows_alone_and_padded(tmp_path) -> None:
    torch.manual_seed(3)
    model, tokenizer = BertForSequenceClassification(bert().config).eval(), tiny_tokenizer()
    rows = [
        TaskRow(id=str(size), prompt="fox " * size, choices=("a", "b"), gold=0, completion="a", text="")
        for size in (9, 3, 6, 12)
    ]
    write_rows(tmp_path, "validation", rows)
    reading = read_held_back(model, tokenizer, tmp_path, head="classifier")
    assert reading is not None
    assert [block.shape for block in reading.logits] == [(1, model.config.num_labels)] * 4
    batch = padded_batch(reading.blocks, head="classifier")
    with torch.no_grad():
        feed = {name: torch.from_numpy(batch.feed[name]) for name in ("input_ids", "attention_mask")}
        logits = batch.rows_of(model(**feed).logits.numpy())
    for ours, alone in zip(logits, reading.logits, strict=True):
        np.testing.assert_allclose(ours, alone, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_classifier_on_a_decoder_finds_the_end_of_padded_rows(tmp_path) -> None:
    """It answers at the last token that is not padding, whose number is seldom 0."""
    torch.manual_seed(3)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=VOCABULARY, pad_token_id=2, num_labels=3, initializer_range=0.5, **shape)
    model = LlamaForSequenceClassification(config).eval()
    rows = [np.random.default_rng(size).integers(3, VOCABULARY, size=size) for size in (9, 3, 6)]
    with torch.no_grad():
        alone = [model(input_ids=torch.from_numpy(row)[None]).logits.numpy() for row in rows]
    write_onnx_classifier(model, tiny_tokenizer(), tmp_path, stored_as("fp32"))
    for measured in OnnxClassifier().measure(tmp_path, rows, stored_as("fp32")):
        np.testing.assert_allclose(list(measured.logits), alone, atol=1e-5)


def test_a_classifier_reads_no_more_of_a_row_than_it_has_positions_for(tmp_path) -> None:
    """RoBERTa leaves the first two of its positions to padding."""
    config = RobertaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=34,
        pad_token_id=1,
    )
    torch.manual_seed(3)
    model, tokenizer = RobertaForSequenceClassification(config).eval(), tiny_tokenizer()
    row = TaskRow(id="0", prompt="fox " * 60, choices=("a", "b"), gold=0, completion="a", text="")
    write_rows(tmp_path, "validation", [row])
    reading = read_held_back(model, tokenizer, tmp_path, head="classifier")
    assert reading is not None
    assert [len(block) for block in reading.blocks] == [32]
    # It is saved as it came, and would cut whatever its users give it.
    assert tokenizer.backend_tokenizer.truncation is None
    assert np.isfinite(reading.logits[0]).all()


def test_without_rows_or_with_too_few_there_is_no_held_back_text(tmp_path) -> None:
    model, tokenizer = FAMILIES["llama"]().eval(), tiny_tokenizer()
    assert read_held_back(model, tokenizer, tmp_path, head="language_model") is None
    row = TaskRow(id="0", prompt="fox", choices=None, gold=None, completion=" jumps", text="")
    write_rows(tmp_path, "validation", [row])
    assert read_held_back(model, tokenizer, tmp_path, head="language_model") is None


def test_layers_in_half_precision_below_an_embedding_in_float32_are_judged_as_such() -> None:
    model = FAMILIES["llama"]().to(torch.bfloat16)
    model.get_input_embeddings().float()
    assert parity_check.weights_precision(model) == "bf16"
    assert parity_check.weights_precision(model.float()) == "fp32"


def test_a_merge_that_has_no_limit_is_not_called_ok(reference: MergedReference) -> None:
    """An approximate one may be as far from what was trained as it is."""
    far = disturbed(reference.fixed.logits, 2.0)
    check = check_merge(far, reference, exact=False, precision="fp32")
    assert (check.rejects, check.verdict) == (False, "measured, without a limit")
    assert check_merge(far, reference, exact=True, precision="fp32").rejects
