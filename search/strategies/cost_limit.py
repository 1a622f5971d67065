"""A limit on what a candidate may cost, kept while a search draws candidates: no evaluation is spent on one that is
too dear.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from search.strategies.grid import Grid, Indices
from shearling.errors import UsageError

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class CostLimit:
    """See the module.

    Attributes:
        cost_of: a candidate; counted, not measured, and less for a larger index or the same.
        most: that it may cost.
    """

    cost_of: Callable[[Indices], float]
    most: float

    @classmethod
    def of_share(cls, share: float, cost_of: Callable[[Indices], float], grid: Grid) -> CostLimit:
        """A share of what the largest candidate costs.

        Raises:
            UsageError: not even the smallest one is that cheap.
        """
        largest, least = cost_of(grid.maximal), cost_of(grid.minimal)
        if least > share * largest:
            raise UsageError(
                f"the smallest sub-network costs {least / largest:.1%} of the largest, more than {share:.1%}",
                where="max_cost_share",
                remedy="Ask for a larger share, or train with smaller widths or ranks",
            )
        return cls(cost_of, share * largest)

    def allows(self, indices: Indices) -> bool:
        """Whether a candidate is cheap enough."""
        return self.cost_of(indices) <= self.most

    def shrink(self, indices: Indices, grid: Grid, random: np.random.Generator) -> Indices:
        """A candidate, with random groups made smaller, a step at a time and where that saves something, until it is
        cheap enough.
        """
        cost = self.cost_of(indices)
        while cost > self.most:
            smaller = [self._step(indices, place) for place, size in enumerate(grid.sizes) if indices[place] + 1 < size]
            costs = [self.cost_of(candidate) for candidate in smaller]
            # Where no single step saves anything, any step will do: the smallest candidate is cheap enough.
            saving = [place for place, value in enumerate(costs) if value < cost] or list(range(len(smaller)))
            chosen = saving[int(random.integers(len(saving)))]
            indices, cost = smaller[chosen], costs[chosen]
        return indices

    @staticmethod
    def _step(indices: Indices, place: int) -> Indices:
        return (*indices[:place], indices[place] + 1, *indices[place + 1 :])
