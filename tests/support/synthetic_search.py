"""A separable objective on a small grid, whose optimum and front are known."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from search.exploration import explore
from search.journal import Journal, Record
from search.objective import CandidateFigures
from search.strategies.cost_limit import Bound, CostLimit
from search.strategies.grid import Grid, Indices
from search.strategies.strategy import Effort, make_strategy

SIZES = (3, 3, 3, 3)
ROWS = 40


def silent(*, note: str | None = None) -> None:
    """A progress bar that nobody watches."""


@dataclass
class Separable:
    """Accuracy is a sum over groups, with a bonus that is not monotone in the rank; parameters shrink with the
    index."""

    weights: tuple[int, ...] = (5, 3, 2, 1)
    preferred: tuple[int, ...] = (1, 0, 2, 1)
    measured: list[Indices] = field(default_factory=list)
    stop_after: int | None = None

    def accuracy(self, indices: Indices) -> float:
        lost = sum(
            weight * abs(index - best)
            for weight, index, best in zip(self.weights, indices, self.preferred, strict=True)
        )
        return 1 - lost / ROWS

    def params(self, indices: Indices) -> int:
        return sum((32 - 8 * index) * (10 + place) for place, index in enumerate(indices))

    def measure_all(self, candidates: Sequence[Indices]) -> Iterator[CandidateFigures]:
        return map(self.measure, candidates)

    def measure(self, indices: Indices) -> CandidateFigures:
        if self.stop_after is not None and len(self.measured) >= self.stop_after:
            raise KeyboardInterrupt
        self.measured.append(indices)
        params, accuracy = self.params(indices), self.accuracy(indices)
        # Some rows are harder than others, and all candidates agree on which.
        answers = tuple(float(row < round(accuracy * ROWS)) for row in range(ROWS))
        return CandidateFigures(accuracy, None, None, ROWS, "0" * 64, params, params, 0.5, answers=answers)


def run(
    path: Path,
    objective: Separable,
    algorithm: str,
    *,
    sizes: tuple[int, ...] = SIZES,
    evaluations: int = 24,
    population: int = 6,
    seed: int = 0,
    share: float | None = None,
) -> list[Record]:
    grid = Grid(sizes)
    limit = None if share is None else CostLimit.of([Bound.of_share(share, objective.params, grid)], grid)
    effort = Effort(evaluations=evaluations, population=population, seed=seed, limit=limit)
    strategy = make_strategy(algorithm, grid, effort)
    return explore(
        strategy,
        objective.measure_all,
        Journal(path),
        grid=grid,
        algorithm=algorithm,
        seed=seed,
        advance=silent,
    )


def everything(sizes: tuple[int, ...] = SIZES) -> list[Indices]:
    return list(itertools.product(*(range(size) for size in sizes)))
