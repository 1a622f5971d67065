"""Hill climbing from the heuristic (the cheaper alternative of the Shears paper, made precise).

A neighbour differs by one step in one group. Each round evaluates a seeded sample of neighbours that were never tried
and moves to the best of them if it is better: more accurate, or as accurate at less cost. The search ends after
`PATIENCE` rounds without a move, when no untried neighbour is left, or with the budget.
"""

from __future__ import annotations

from collections.abc import Sequence

from search.strategies.cost_limit import Budget
from search.strategies.grid import Grid, Indices
from search.strategies.strategy import Outcome

PATIENCE = 3


class HillClimbing:
    """See the module.

    Args:
        grid: the space.
        evaluations: budget, the heuristic included.
        neighbours: most neighbours of a round.
        seed: of the samples.
        budget: of a candidate; the heuristic is shrunk to it.
    """

    def __init__(
        self, grid: Grid, *, evaluations: int, neighbours: int, seed: int, budget: Budget | None = None
    ) -> None:
        import numpy as np

        self.planned = min(evaluations, grid.size)
        self.parent: Indices | None = None
        self._grid = grid
        self._neighbours = neighbours
        self._random = np.random.default_rng(seed)
        self._budget = budget
        self._best: Outcome | None = None
        self._tried: set[Indices] = set()
        self._idle_rounds = 0

    def ask(self) -> Sequence[Indices]:
        """The heuristic first, then untried neighbours of the best so far."""
        if self._best is None:
            start = self._grid.heuristic
            round_ = [start if self._budget is None else self._budget.shrink(start, self._grid, self._random)]
        elif self._idle_rounds >= PATIENCE:
            return []
        else:
            self.parent = self._best.indices
            round_ = self._sample(self._best.indices)
        self._tried.update(round_)
        return round_

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        """Move to the best outcome of the round, if it is better."""
        # The smaller index wins a full tie, so that the path does not depend on the order of the sample.
        best = min(outcomes, key=lambda outcome: (-outcome.accuracy, outcome.cost, outcome.indices))
        if self._best is None or best.merit > self._best.merit:
            self._best, self._idle_rounds = best, 0
        else:
            self._idle_rounds += 1

    def _sample(self, centre: Indices) -> list[Indices]:
        untried = [indices for indices in self._grid.neighbours(centre) if indices not in self._tried]
        if self._budget is not None:
            untried = [indices for indices in untried if self._budget.allows(indices)]
        count = min(self._neighbours, len(untried), self.planned - len(self._tried))
        return [untried[place] for place in self._random.permutation(len(untried))[:count]]
