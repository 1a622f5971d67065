"""What a search strategy is: it asks for candidates, and is told how they did.

A candidate is a tuple of indices, one into the value list of each group of the search space; index 0 is the full rank.
Strategies are deterministic functions of their seed and of what they are told, which is how an interrupted search resumes:
the journal's outcomes are told again.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np

    from search.budget import Budget
    from shearling.search_space import SearchSpace

Algorithm = Literal["heuristic", "random", "hill_climbing", "nsga2"]
Cost = Literal["adapter_params", "parameters", "macs", "latency"]
"""What a search saves: weights of the adapter, weights or multiply-accumulates of the model, or its time."""
Indices = tuple[int, ...]
MOST_DRAWS = 1000
"""So many draws in a row that give nothing new, and a space counts as exhausted."""


@dataclass(frozen=True)
class Outcome:
    """How one candidate did.

    Attributes:
        accuracy: to be maximised.
        cost: to be minimised; adapter parameters, or what the search was told to save.
    """

    indices: Indices
    accuracy: float
    cost: float

    @property
    def merit(self) -> tuple[float, float]:
        """Larger is better: accuracy, then less cost."""
        return self.accuracy, -self.cost


class Strategy(Protocol):
    """A way to explore the space."""

    @property
    def planned(self) -> int:
        """Most candidates that it will ask for."""
        ...

    @property
    def parent(self) -> Indices | None:
        """The candidate that those last asked for were derived from, if there is one."""
        ...

    def ask(self) -> Sequence[Indices]:
        """The next generation of candidates; empty when the search is over."""
        ...

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        """The outcomes of the candidates last asked for, in their order."""
        ...


@dataclass(frozen=True)
class Grid:
    """The index space of a search.

    Attributes:
        sizes: number of values of each group.
    """

    sizes: tuple[int, ...]

    @classmethod
    def of(cls, space: SearchSpace) -> Grid:
        """The grid of a search space."""
        return cls(tuple(len(group.values) for group in space.groups))

    @property
    def size(self) -> int:
        """Number of candidates."""
        return math.prod(self.sizes)

    @property
    def maximal(self) -> Indices:
        """Every group at its largest value."""
        return tuple(0 for _ in self.sizes)

    @property
    def minimal(self) -> Indices:
        """Every group at its smallest value."""
        return tuple(size - 1 for size in self.sizes)

    @property
    def heuristic(self) -> Indices:
        """Every group at index floor((n - 1) / 2)."""
        return tuple((size - 1) // 2 for size in self.sizes)

    def neighbours(self, indices: Indices) -> list[Indices]:
        """Candidates that differ by one step in one group, in a fixed order."""
        moves = [(place, index + step) for place, index in enumerate(indices) for step in (-1, 1) if 0 <= index + step < self.sizes[place]]
        return [(*indices[:place], moved, *indices[place + 1 :]) for place, moved in moves]

    def draw(self, random: np.random.Generator, *, seen: set[Indices], budget: Budget | None = None) -> Indices | None:
        """One candidate that is not in `seen`, and is added to it: uniform, then shrunk to the budget; None if none is left."""
        if budget is None and len(seen) >= self.size:
            return None
        for _ in itertools.count() if budget is None else range(MOST_DRAWS):
            drawn = tuple(int(index) for index in random.integers(self.sizes))
            if budget is not None:
                drawn = budget.shrink(drawn, self, random)
            if drawn not in seen:
                seen.add(drawn)
                return drawn
        return None
