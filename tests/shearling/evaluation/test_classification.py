"""A classifier on some of the rows of its task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from shearling.artefact import MANIFEST
from shearling.evaluation.classification import ClassifierEvaluator
from shearling.evaluation.task import TaskRow, write_rows
from shearling.strict_json import write_json


class ByLength:
    """Two classes, by the length of a text."""

    def logits(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.tensor([[1.0, len(text) % 3] for text in texts])


def evaluator(directory: Path) -> ClassifierEvaluator:
    rows = [
        TaskRow(id=f"{row:064d}", prompt="x" * row, choices=("no", "yes"), gold=row % 2, completion="no", text="x")
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
