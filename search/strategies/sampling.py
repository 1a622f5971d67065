"""The two strategies that learn nothing: the middle of the space, and uniform samples of it."""

from __future__ import annotations

from collections.abc import Sequence

from search.strategies.cost_limit import Budget
from search.strategies.drawing import draw_new
from search.strategies.grid import Grid, Indices
from search.strategies.strategy import Outcome


class HeuristicOnly:
    """The middle value of every group: O(1), and what all published Shears tables use."""

    planned = 1
    parent: Indices | None = None

    def __init__(self, grid: Grid) -> None:
        self._left = [grid.heuristic]

    def ask(self) -> Sequence[Indices]:
        """The one candidate, once."""
        asked, self._left = self._left, []
        return asked

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        """Nothing follows from the outcome."""


class UniformSampling:
    """Uniform draws without repetition; the whole space if it is smaller than the budget.

    Args:
        grid: the space.
        evaluations: number of draws.
        seed: of the draws.
        budget: of a candidate.
    """

    parent: Indices | None = None

    def __init__(self, grid: Grid, *, evaluations: int, seed: int, budget: Budget | None = None) -> None:
        import numpy as np

        self.planned = min(evaluations, grid.size)
        self._grid = grid
        self._random = np.random.default_rng(seed)
        self._budget = budget
        self._seen: set[Indices] = set()

    def ask(self) -> Sequence[Indices]:
        """One more draw."""
        if len(self._seen) >= self.planned:
            return []
        drawn = draw_new(self._grid, self._random, seen=self._seen, budget=self._budget)
        return [] if drawn is None else [drawn]

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        """Nothing follows from the outcomes."""
