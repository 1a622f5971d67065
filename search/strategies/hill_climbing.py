"""Hill climbing from the heuristic (the cheaper alternative of the Shears paper, made precise).

A neighbour differs by one step in one group. Each round evaluates a seeded sample of neighbours that were never tried
and moves to the best of them if it is better: more accurate, or as accurate at less cost. The search ends after
`PATIENCE` rounds without a move, when no untried neighbour is left, or when all evaluations are spent.
"""

from __future__ import annotations

from collections.abc import Sequence

from search.strategies.grid import Grid, Indices
from search.strategies.strategy import Effort, Trial

PATIENCE = 3


class HillClimbing:
    """See the module.

    Args:
        grid: the space.
        effort: its population is the most neighbours of a round; the heuristic counts, and is shrunk to its limit.
    """

    def __init__(self, grid: Grid, effort: Effort) -> None:
        import numpy as np

        self.planned = min(effort.evaluations, grid.size)
        self.parent: Indices | None = None
        self._grid = grid
        self._neighbours = effort.population
        self._random = np.random.default_rng(effort.seed)
        self._limit = effort.limit
        self._best: Trial | None = None
        self._tried: set[Indices] = set()
        self._idle_rounds = 0

    def ask(self) -> Sequence[Indices]:
        """The heuristic first, then untried neighbours of the best so far."""
        if self._best is None:
            start = self._grid.heuristic
            round_ = [start if self._limit is None else self._limit.shrink(start, self._grid, self._random)]
        elif self._idle_rounds >= PATIENCE:
            return []
        else:
            self.parent = self._best.indices
            round_ = self._sample(self._best.indices)
        self._tried.update(round_)
        return round_

    def tell(self, trials: Sequence[Trial]) -> None:
        """Move to the best trial of the round, if it is better."""
        # The smaller index wins a full tie, so that the path does not depend on the order of the sample.
        best = min(trials, key=lambda trial: (-trial.accuracy, trial.cost, trial.indices))
        if self._best is None or best.merit > self._best.merit:
            self._best, self._idle_rounds = best, 0
        else:
            self._idle_rounds += 1

    def _sample(self, centre: Indices) -> list[Indices]:
        untried = [indices for indices in self._grid.neighbours(centre) if indices not in self._tried]
        if self._limit is not None:
            untried = [indices for indices in untried if self._limit.allows(indices)]
        count = min(self._neighbours, len(untried), self.planned - len(self._tried))
        return [untried[place] for place in self._random.permutation(len(untried))[:count]]
