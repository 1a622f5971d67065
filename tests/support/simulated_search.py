"""Searches without a model: candidates of known accuracy answer rows of shared difficulty."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np

from search.examination import Examiner
from search.exploration import explore
from search.front import BestRule, best_record
from search.journal import Journal, Record
from search.objective import CandidateFigures
from search.race import race
from search.row_split import RowSplit
from search.strategies.grid import Grid, Indices
from search.strategies.strategy import Trial
from tests.support.synthetic_search import silent

SHARED = 0.8
"""Share of the variance of a row's latent difficulty that all candidates have in common; two candidates of 72 % then
disagree on 17 % of the rows."""


class Listed:
    """A strategy that asks for candidates of a list, all at once."""

    parent: Indices | None = None

    def __init__(self, candidates: Sequence[Indices]) -> None:
        self.planned = len(candidates)
        self._left = list(candidates)

    def ask(self) -> Sequence[Indices]:
        asked, self._left = self._left, []
        return asked

    def tell(self, trials: Sequence[Trial]) -> None:
        """Nothing follows from the trials."""


class SimulatedRows:
    """What candidates answer to the rows of a validation split.

    Args:
        accuracies: the truth; candidate (0,) is the largest, and a larger index costs less.
        rows: of the split.
        limit: see `RowSplit`.
        random: draws the difficulty of every row, and what each candidate adds to it.

    Attributes:
        forwarded: every candidate and position that was measured, in order.
        stop_after: so many measurements, as if the process were killed then.
    """

    def __init__(
        self, accuracies: Sequence[float], random: np.random.Generator, *, rows: int, limit: int | None = None
    ) -> None:
        self.stop_after: int | None = None
        self.accuracies = tuple(accuracies)
        self.split = RowSplit.of([f"{row:08d}" for row in range(rows)], limit=limit)
        self.forwarded: list[tuple[Indices, int]] = []
        self.measurements = 0
        own = random.standard_normal((len(self.accuracies), rows))
        latent = np.sqrt(SHARED) * random.standard_normal(rows) + np.sqrt(1 - SHARED) * own
        quantiles = [NormalDist().inv_cdf(accuracy) for accuracy in self.accuracies]
        self.answers = latent < np.array(quantiles)[:, None]

    def measure_all(self, requests: Sequence[tuple[Indices, range]]) -> Iterator[CandidateFigures]:
        return itertools.starmap(self.measure, requests)

    def measure(self, indices: Indices, positions: range) -> CandidateFigures:
        if self.measurements == self.stop_after:
            raise KeyboardInterrupt
        self.measurements += 1
        self.forwarded += [(indices, position) for position in positions]
        answers = tuple(float(self.answers[indices[0], place]) for place in self.split.places_of(positions))
        accuracy, cost = sum(answers) / len(answers), 1000 - indices[0]
        sha256 = self.split.sha256(positions)
        return CandidateFigures(accuracy, None, None, len(answers), sha256, cost, cost, 0.0, answers=answers)


class Unwritten(Journal):
    """A journal that is kept in memory: hundreds of searches need not wait for a disk."""

    def __init__(self) -> None:
        super().__init__(Path("unwritten"))

    def append(self, record: Record) -> None:
        self._keep(record)


@dataclass(frozen=True)
class Outcome:
    """How a search ended.

    Attributes:
        best: on the rows that chose.
        held_back: the same on the rows that did not.
        finalists: what was measured on all rows that choose.
    """

    best: Record
    held_back: Record | None
    finalists: list[Record]


def simulate(rows: SimulatedRows, rule: BestRule, journal: Journal | None = None) -> Outcome:
    """The real search but for the model: explore all candidates, race, choose, and measure what is held back."""
    examiner = Examiner(rows.measure_all, journal or Unwritten(), rows.split)
    grid = Grid((len(rows.accuracies),))
    explored = explore(
        Listed([(index,) for index in range(len(rows.accuracies))]),
        examiner.explore,
        examiner.journal,
        grid=grid,
        algorithm="listed",
        seed=0,
        advance=silent,
    )
    finalists = race(explored, rule, examiner, advance=silent)
    best = best_record(finalists, rule, explored=explored)
    return Outcome(best, next(iter(examiner.hold_against([best])), None), finalists)
