"""Finished cells as rows of a table: means over tasks and seeds, and the difference from the dense baseline."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from benchmarks.quality.arms import ARMS, BASELINE, ratio_title
from benchmarks.quality.cell import CellDocument, SubnetFigures, SubnetName
from shearling.evaluation.confidence import wilson_interval

Measured = Sequence[tuple[CellDocument, SubnetFigures]]

BEFORE_TRAINING: tuple[SubnetName, ...] = ("adapted", "frozen")
"""What was measured before the arm's adapters were trained."""


@dataclass(frozen=True)
class RowKey:
    """What a row of the table stands for.

    Attributes:
        ratio: as on the command line; empty for a dense model.
    """

    model: str
    ratio: str
    arm: str
    subnet: SubnetName

    @property
    def title(self) -> str:
        """The arm, and which sub-network where it has several."""
        arm = ARMS[self.arm].title if self.arm in ARMS else self.arm
        known = ARMS.get(self.arm)
        several = known is not None and (known.ranks == "elastic" or known.adapted or known.served)
        return f"{arm}: {self.subnet}" if several else arm

    @property
    def is_baseline(self) -> bool:
        """Whether the others are told against it: a LoRA on dense weights, by itself or as what an arm begins with."""
        return self.subnet == "adapted" or (self.arm, self.subnet) == (BASELINE, "largest")

    @property
    def ratio_title(self) -> str:
        """As shown: "50 %", "2:4", or nothing."""
        return ratio_title(self.ratio)


@dataclass(frozen=True)
class SeedMean:
    """A mean, and its standard error over seeds; None where there is one seed alone, or seeds have other tasks."""

    mean: float
    stderr: float | None


@dataclass(frozen=True)
class TaskScore:
    """One task of a row.

    Attributes:
        accuracy: over seeds.
        interval: Wilson, 95 %, of the mean accuracy on so many rows: what other rows might give.
        difference: from the baseline's, of the same seeds; None where there is none.
        seeds: how many.
    """

    accuracy: SeedMean
    interval: tuple[float, float]
    difference: SeedMean | None
    bits_per_byte: float | None
    seeds: int


@dataclass(frozen=True)
class Row:
    """A row of the table; means are over tasks within a seed, then over seeds.

    Attributes:
        cells: how many it is made of.
        paired: task and seed of those of them that have a baseline.
        accuracy: on test rows.
        difference: from the baseline's, of the same tasks and seeds; None where they have none in common.
        before: bits per byte of the general text before training; None of what was trained no further.
        after: the same as measured, after training.
        more_bits: share of bits per byte beyond the baseline's, mean over cells; None where nothing has both.
        minutes: of a cell: import, pruning, training and search.
        tasks: by name.
    """

    key: RowKey
    cells: int
    paired: frozenset[tuple[str, int]]
    accuracy: SeedMean
    difference: SeedMean | None
    before: float | None
    after: float | None
    more_bits: float | None
    minutes: float
    tasks: Mapping[str, TaskScore]


@dataclass(frozen=True)
class Predictions:
    """How true it was what searches said of the sub-networks that they found.

    Attributes:
        searches: that predicted something, from validation rows that had no part in choosing.
        covered: whose 95 % interval held the accuracy on test rows.
        bias: mean of predicted minus found accuracy; positive flatters.
    """

    searches: int
    covered: int
    bias: float


def judge_predictions(cells: Iterable[CellDocument]) -> Predictions | None:
    """Predictions against test rows; None where nothing was searched."""
    held_back = [
        (figures.predicted["held_back"], figures.accuracy)
        for cell in cells
        for figures in cell.subnets
        if figures.predicted and figures.predicted.get("held_back")
    ]
    if not held_back:
        return None
    covered = sum(predicted["interval"][0] <= found <= predicted["interval"][1] for predicted, found in held_back)
    bias = statistics.fmean(predicted["accuracy"] - found for predicted, found in held_back)
    return Predictions(len(held_back), covered, bias)


def summarise(cells: Iterable[CellDocument]) -> list[Row]:
    """The rows of the table: the baseline of a model first, then ratio by ratio in the order of the arms.

    What began with a LoRA of its own is held against that; the rest against the baseline of its task and seed or, where
    there is none, the LoRA that another arm began with. These are the same training, but in another precision it ends
    elsewhere.
    """
    found: dict[RowKey, list[tuple[CellDocument, SubnetFigures]]] = {}
    for cell in cells:
        for figures in cell.subnets:
            found.setdefault(RowKey(cell.model, cell.ratio, cell.arm, figures.subnet), []).append((cell, figures))
    return [_row(key, found[key], dense=_baseline(found, key.model)) for key in sorted(found, key=_place)]


def _baseline(found: Mapping[RowKey, Measured], model: str) -> dict[tuple[str, int], SubnetFigures]:
    """By task and seed."""
    baselines = [key for key in found if key.model == model and key.is_baseline]
    own = [key for key in baselines if key.arm == BASELINE]
    begun = [key for key in baselines if key.arm != BASELINE]
    # The later of two wins.
    measured = [item for keys in (begun, own) for key in keys for item in found[key]]
    return {(cell.task, cell.seed): figures for cell, figures in measured}


def _baseline_of(cell: CellDocument, dense: Mapping[tuple[str, int], SubnetFigures]) -> SubnetFigures | None:
    own = [figures for figures in cell.subnets if figures.subnet == "adapted"]
    return own[0] if own else dense.get((cell.task, cell.seed))


def _place(key: RowKey) -> tuple[str, bool, float | str, int, str, int]:
    order = list(ARMS).index(key.arm) if key.arm in ARMS else len(ARMS)
    pattern = ":" in key.ratio
    # Patterns behind all shares; the two kinds are never compared with each other.
    ratio: float | str = key.ratio if pattern else float(key.ratio or 0)
    return key.model, pattern, ratio, order, key.arm, get_args(SubnetName).index(key.subnet)


@dataclass(frozen=True)
class _Pair:
    """What was measured, and the baseline of its task and seed where it has one."""

    cell: CellDocument
    figures: SubnetFigures
    dense: SubnetFigures | None


def _row(key: RowKey, measured: Measured, *, dense: Mapping[tuple[str, int], SubnetFigures]) -> Row:
    pairs = [_Pair(cell, figures, _baseline_of(cell, dense)) for cell, figures in measured]
    tasks = sorted({cell.task for cell, _ in measured})
    return Row(
        key=key,
        cells=len(pairs),
        paired=frozenset((pair.cell.task, pair.cell.seed) for pair in pairs if pair.dense is not None),
        accuracy=_accuracy(pairs),
        difference=_difference(pairs),
        before=None if key.subnet in BEFORE_TRAINING else _mean(cell.bits_per_byte for cell, _ in measured),
        after=_mean(figures.bits_per_byte for _, figures in measured),
        more_bits=_mean(map(_more_bits, pairs)),
        minutes=statistics.fmean(cell.prepare_s + cell.train_s + cell.search_s for cell, _ in measured) / 60,
        tasks={task: _task_score([pair for pair in pairs if pair.cell.task == task]) for task in tasks},
    )


def _task_score(pairs: Sequence[_Pair]) -> TaskScore:
    accuracy = _accuracy(pairs)
    # Seeds share their rows, so that more seeds do not narrow it.
    interval = wilson_interval(accuracy.mean, min(pair.figures.n for pair in pairs))
    bits = _mean(pair.figures.bits_per_byte for pair in pairs)
    return TaskScore(accuracy, interval, _difference(pairs), bits, len(pairs))


def _accuracy(pairs: Iterable[_Pair]) -> SeedMean:
    return _over_seeds((pair.cell, pair.figures.accuracy) for pair in pairs)


def _difference(pairs: Iterable[_Pair]) -> SeedMean | None:
    found = [(pair.cell, pair.figures.accuracy - pair.dense.accuracy) for pair in pairs if pair.dense is not None]
    return _over_seeds(found) if found else None


def _more_bits(pair: _Pair) -> float | None:
    own, dense = pair.figures.bits_per_byte, pair.dense.bits_per_byte if pair.dense else None
    return None if own is None or dense is None else own / dense - 1


def _over_seeds(values: Iterable[tuple[CellDocument, float]]) -> SeedMean:
    by_seed: dict[int, dict[str, float]] = {}
    for cell, value in values:
        by_seed.setdefault(cell.seed, {})[cell.task] = value
    means = [statistics.fmean(own.values()) for own in by_seed.values()]
    # Seeds of other tasks differ by their tasks.
    alike = len({frozenset(own) for own in by_seed.values()}) == 1
    stderr = statistics.stdev(means) / math.sqrt(len(means)) if alike and len(means) > 1 else None
    return SeedMean(statistics.fmean(means), stderr)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
