"""Uniform draws of candidates, within a limit on their cost where there is one."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from search.strategies.cost_limit import CostLimit
from search.strategies.grid import Grid, Indices

if TYPE_CHECKING:
    import numpy as np

MOST_DRAWS = 1000
"""So many draws in a row that give nothing new, and a space counts as exhausted."""


def draw_new(
    grid: Grid, random: np.random.Generator, *, seen: set[Indices], limit: CostLimit | None = None
) -> Indices | None:
    """One candidate that is not in `seen`, and is added to it: uniform, then shrunk to the limit; None if none is
    left.
    """
    if limit is None and len(seen) >= grid.size:
        return None
    for _ in itertools.count() if limit is None else range(MOST_DRAWS):
        drawn = tuple(int(index) for index in random.integers(grid.sizes))
        if limit is not None:
            drawn = limit.shrink(drawn, grid, random)
        if drawn not in seen:
            seen.add(drawn)
            return drawn
    return None
