"""The frozen model without its adapter, beside what was chosen.

Where the dense model was adapted to the task before it was pruned, the run has a model without any adapter that knows
the task already, and an adapter has to be worth its training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search.journal import Record
from search.opening import SearchInputs
from search.pieces import PieceOutcome
from search.strategies.grid import FROZEN, Indices
from shearling.artefact import open_artefact
from shearling.evaluation.confidence import wilson_interval
from shearling.evaluation.paired_difference import paired_difference
from shearling.run import Run


@dataclass(frozen=True)
class FrozenModel:
    """What it reaches on the rows that are held back, and the best sub-network less that.

    Attributes:
        path: the artefact.
        n: rows.
        accuracy: share of right answers, 0 to 1.
        interval: of it, Wilson, 95 %.
        best_gains: the accuracy of the best sub-network less that.
        gain_interval: of the difference, 95 %, row by row.
    """

    path: Path
    n: int
    accuracy: float
    interval: tuple[float, float]
    best_gains: float
    gain_interval: tuple[float, float]

    @property
    def is_beaten(self) -> bool:
        """Whether the best sub-network is more accurate by more than chance explains."""
        return self.gain_interval[0] > 0

    @property
    def beats(self) -> bool:
        """Whether it is more accurate than the best sub-network by more than chance explains."""
        return self.gain_interval[1] < 0

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "path": str(self.path),
            "n": self.n,
            "accuracy": self.accuracy,
            "interval": list(self.interval),
            "best_gains": self.best_gains,
            "gain_interval": list(self.gain_interval),
        }


def stands_alone(inputs: SearchInputs) -> bool:
    """Whether the frozen model has learnt the task of the search, and is deployed as it is measured beside adapters:
    with every width and number as stored, and no head that was trained with them.
    """
    own = inputs.task is not None and inputs.head == "language_model"
    space = inputs.space
    plain = not space.width_groups and not space.mixed_groups and space.adapter.grid is None
    return own and plain and _has_learnt(inputs)


def _has_learnt(inputs: SearchInputs) -> bool:
    # Healing sees no label: it learns of the dense model, whatever that knows.
    frozen = inputs.frozen
    if frozen.manifest.kind == "base":
        return bool(frozen.manifest.details.get("adapted"))
    adapted = Run(frozen.path.parent).adapted
    dense = open_artefact(adapted, kind="base", only=()) if adapted.exists() else None
    return dense is not None and frozen.manifest.parents.get("base") == dense.sha256


def measure_frozen(
    best: Record,
    frozen: Path,
    measure: Callable[[Sequence[tuple[Indices, range]]], Iterator[PieceOutcome]],
    positions: range,
) -> FrozenModel:
    """Measure the frozen model on the rows that are held back.

    Args:
        best: the record of the best sub-network on these rows.
        frozen: the artefact.
        measure: the answers of candidates to rows.
        positions: of the rows.
    """
    answers = next(measure([(FROZEN, positions)])).answers
    accuracy = math.fsum(answers) / len(answers)
    gain = paired_difference(best.answers or (), answers)
    interval = wilson_interval(accuracy, len(answers))
    return FrozenModel(frozen, len(answers), accuracy, interval, gain.mean, gain.interval)
