"""A classifier on some of the rows of its task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from shearling.artefact import MANIFEST
from shearling.errors import NonFiniteWeights, UsageError
from shearling.evaluation.classification import ClassifierEvaluator
from shearling.evaluation.task import TaskRow, write_rows
from shearling.strict_json import write_json
from tests.support.tiny_models import VOCABULARY, tiny_tokenizer


class ByLength:
    """Two classes, by the length of a text."""

    def logits(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.tensor([[1.0, len(text) % 3] for text in texts])


class Undefined:
    """Computes nothing for one text."""

    def logits(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.tensor([[1.0, math.nan if len(text) == 7 else 0.0] for text in texts])


def evaluator(directory: Path, *, right: int = 0) -> ClassifierEvaluator:
    rows = [
        TaskRow(
            id=f"{row:064d}", prompt="x" * row, choices=("no", "yes"), gold=(row + right) % 2, completion="no", text="x"
        )
        for row in range(1, 12)
    ]
    write_rows(directory, "validation", rows)
    write_json(directory / MANIFEST, {"details": {"recipe": {"max_length": 32}}})
    return ClassifierEvaluator(directory, "lengths", split="validation", batch_size=4)


def test_some_rows_answer_as_they_do_among_all_in_the_order_asked_for(tmp_path: Path) -> None:
    lengths, places = evaluator(tmp_path), [9, 2, 0, 5]
    whole, part = lengths.measure(ByLength()), lengths.measure(ByLength(), places)
    assert 0 < whole.accuracy < 1
    assert whole.losses is not None
    assert part.losses is not None
    assert part.answers == tuple(whole.answers[place] for place in places)
    assert part.losses == tuple(whole.losses[place] for place in places)
    assert (part.n, part.accuracy, part.loss) == (4, sum(part.answers) / 4, math.fsum(part.losses) / 4)
    assert lengths.row_digests == tuple(f"{row:064d}" for row in range(1, 12))


def test_a_task_with_other_labels_is_another_one(tmp_path: Path) -> None:
    one, again, other = (evaluator(tmp_path, right=right).sha256 for right in (0, 0, 1))
    assert one == again != other


def test_a_classifier_that_computes_nan_is_refused_and_never_scored(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteWeights, match="NaN"):
        evaluator(tmp_path).measure(Undefined())


@pytest.mark.parametrize("missing", ["gold", "choices"])
def test_a_task_without_choices_is_none_for_a_classifier(tmp_path: Path, missing: str) -> None:
    row = {"id": "0" * 64, "prompt": "x", "choices": ("no", "yes"), "gold": 0, "completion": "no", "text": "x"}
    write_rows(tmp_path, "validation", [TaskRow.model_validate({**row, missing: None})])
    write_json(tmp_path / MANIFEST, {"details": {"recipe": {"max_length": 32}}})
    with pytest.raises(UsageError, match=r"task told: .*a classifier answers by its classes.*no choices"):
        ClassifierEvaluator(tmp_path, "told", split="validation")


def test_a_model_of_other_classes_than_the_choices_is_refused(tmp_path: Path) -> None:
    class OfThree:
        def logits(self, texts: Sequence[str]) -> torch.Tensor:
            return torch.zeros(len(texts), 3)

    with pytest.raises(UsageError, match="the model has 3 classes, the rows have 2 choices"):
        evaluator(tmp_path).measure(OfThree())


def test_texts_longer_than_a_model_reads_are_refused_before_any_is_read(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=16,
    )
    lengths, model = evaluator(tmp_path), BertForSequenceClassification(config).eval()
    told = "texts of up to 32 tokens, and the model reads 16"
    with pytest.raises(UsageError, match=told):
        lengths.on_torch(model, tiny_tokenizer(), precision="fp32")
    with pytest.raises(UsageError, match=told):
        lengths.on_onnx(None, tiny_tokenizer(), max_length=16)
    with pytest.raises(UsageError, match=told):
        lengths.on_openvino(None, tiny_tokenizer(), max_length=16)
