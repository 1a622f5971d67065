"""The two strategies that learn nothing: the middle of the space, and uniform samples of it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from search.strategies.drawing import draw_new
from search.strategies.grid import Grid, Indices
from search.strategies.strategy import Effort, Trial


class HeuristicOnly:
    """The middle value of every group: O(1), and what all published Shears tables use.

    Args:
        grid: the space.
        effort: within what cost; where the middle costs more, it is shrunk.
    """

    planned = 1
    parent: Indices | None = None

    def __init__(self, grid: Grid, effort: Effort) -> None:
        import numpy as np

        limit, middle = effort.limit, grid.heuristic
        self._left = [middle if limit is None else limit.shrink(middle, grid, np.random.default_rng(effort.seed))]

    def ask(self) -> Sequence[Indices]:
        """The one candidate, once."""
        asked, self._left = self._left, []
        return asked

    def tell(self, trials: Sequence[Trial]) -> None:
        """Nothing follows from the trial."""


class UniformSampling:
    """Uniform draws without repetition; the whole space if it is smaller than the effort.

    Args:
        grid: the space.
        effort: how many draws, within what cost.
    """

    parent: Indices | None = None

    def __init__(self, grid: Grid, effort: Effort) -> None:
        import numpy as np

        self.planned = min(effort.evaluations, grid.size)
        self._grid = grid
        self._random = np.random.default_rng(effort.seed)
        self._limit = effort.limit
        self._seen: set[Indices] = set()
        self._asked = False

    def ask(self) -> Sequence[Indices]:
        """All draws, at once: nothing is learnt between them."""
        if self._asked:
            return []
        self._asked = True
        draws = iter(lambda: draw_new(self._grid, self._random, seen=self._seen, limit=self._limit), None)
        return list(itertools.islice(draws, self.planned))

    def tell(self, trials: Sequence[Trial]) -> None:
        """Nothing follows from the trials."""
