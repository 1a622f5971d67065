"""Limits on what a candidate may cost, kept while a search draws candidates: no evaluation is spent on one that is
too dear, and a limit that nothing keeps is refused before the first one.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from search.strategies.grid import Grid, Indices
from shearling.errors import NoCandidate

if TYPE_CHECKING:
    import numpy as np

CostOf = Callable[[Indices], float]
"""What a candidate costs; counted, not measured."""

COMPROMISES = 12
"""Weighted sums of several limits that are tried before they are refused together."""

REMEDY = "Ask for less, or train with smaller widths or ranks; nothing was evaluated"


@dataclass(frozen=True)
class Bound:
    """One limit.

    Attributes:
        cost_of: a candidate; more than 0.
        most: that it may cost.
        words: what the cheapest candidate has, against the limit: what is told where even that is too dear.
        where: the option that the limit comes from.
    """

    cost_of: CostOf
    most: float
    words: Callable[[float], str]
    where: str | None = None

    @classmethod
    def of_share(cls, share: float, cost_of: CostOf, grid: Grid) -> Bound:
        """A share of what the largest candidate costs."""
        largest = cost_of(grid.maximal)
        return cls(
            cost_of,
            share * largest,
            lambda least: f"the cheapest sub-network costs {least / largest:.1%} of the largest, more than {share:.1%}",
            "max_cost_share",
        )

    @classmethod
    def below(cls, most: float, cost_of: CostOf, *, show: Callable[[float], str], where: str) -> Bound:
        """So much at most.

        Args:
            most: in the unit of `cost_of`.
            cost_of: a candidate.
            show: a cost with its unit.
            where: the option that it comes from.
        """
        return cls(
            cost_of, most, lambda least: f"the cheapest sub-network has {show(least)}, more than {show(most)}", where
        )


@dataclass(frozen=True)
class CostLimit:
    """See the module.

    Attributes:
        bounds: all of them are kept; at least one.
        cheapest: a candidate that keeps them.
    """

    bounds: tuple[Bound, ...]
    cheapest: Indices

    @classmethod
    def of(cls, bounds: Sequence[Bound], grid: Grid) -> CostLimit:
        """The limit, once it is known that it can be kept.

        Raises:
            NoCandidate: no candidate keeps one of the bounds, or none was found that keeps all.
        """
        candidates = [grid.minimal]
        for bound in bounds:
            cheapest = find_cheapest(bound.cost_of, grid)
            least = bound.cost_of(cheapest)
            if least > bound.most:
                raise NoCandidate(bound.words(least), where=bound.where, remedy=REMEDY)
            candidates.append(cheapest)
        limit = cls(tuple(bounds), grid.minimal)
        for cheapest in itertools.chain(candidates, limit.compromises(grid)):
            if limit.allows(cheapest):
                return cls(tuple(bounds), cheapest)
        names = " and ".join(bound.where or "a limit" for bound in bounds)
        raise NoCandidate(f"no sub-network was found that keeps all limits: {names}", remedy=REMEDY)

    def compromises(self, grid: Grid) -> Iterator[Indices]:
        """Candidates between those that are cheapest by one bound each: cheapest by a weighted sum, of which the bounds
        that it breaks get a larger share, and what is near it by the bound that is broken most.
        """
        weights = [1.0] * len(self.bounds)
        for _ in range(COMPROMISES):
            shares = [weight / bound.most for weight, bound in zip(weights, self.bounds, strict=True)]
            found = find_cheapest(functools.partial(self._weighted, shares), grid)
            yield found
            yield find_cheapest(self.load, grid, start=found)
            weights = [
                weight * bound.cost_of(found) / bound.most for weight, bound in zip(weights, self.bounds, strict=True)
            ]

    def _weighted(self, shares: Sequence[float], indices: Indices) -> float:
        return sum(share * bound.cost_of(indices) for share, bound in zip(shares, self.bounds, strict=True))

    def load(self, indices: Indices) -> float:
        """What a candidate costs, as a share of what it may; of several limits the largest share."""
        return max(bound.cost_of(indices) / bound.most for bound in self.bounds)

    def allows(self, indices: Indices) -> bool:
        """Whether a candidate is cheap enough."""
        return all(bound.cost_of(indices) <= bound.most for bound in self.bounds)

    def shrink(self, indices: Indices, grid: Grid, random: np.random.Generator) -> Indices:
        """A candidate, with random groups made smaller, a step at a time and where that saves something, until it is
        cheap enough.
        """
        load = self.load(indices)
        while not self.allows(indices):
            smaller = [self._step(indices, place) for place, size in enumerate(grid.sizes) if indices[place] + 1 < size]
            if not smaller:
                # Where smaller is not always faster, the smallest candidate need not be the cheapest.
                return self.cheapest
            loads = [self.load(candidate) for candidate in smaller]
            # Where no single step saves anything, any step will do.
            saving = [place for place, value in enumerate(loads) if value < load] or list(range(len(smaller)))
            chosen = saving[int(random.integers(len(saving)))]
            indices, load = smaller[chosen], loads[chosen]
        return indices

    @staticmethod
    def _step(indices: Indices, place: int) -> Indices:
        return (*indices[:place], indices[place] + 1, *indices[place + 1 :])


def find_cheapest(cost_of: CostOf, grid: Grid, *, start: Indices | None = None) -> Indices:
    """The cheapest candidate.

    Costs are sums over layers, so that it is found by changing one group at a time until nothing is cheaper; what is
    counted is least in the smallest candidate already, and a time need not be.

    Args:
        cost_of: a candidate.
        grid: the candidates that there are.
        start: where to begin; None is the smallest candidate.
    """
    best = grid.minimal if start is None else start
    least = cost_of(best)
    improved = True
    while improved:
        improved = False
        for place, size in enumerate(grid.sizes):
            for index in range(size):
                candidate = (*best[:place], index, *best[place + 1 :])
                cost = cost_of(candidate)
                if cost < least:
                    best, least, improved = candidate, cost, True
    return best
