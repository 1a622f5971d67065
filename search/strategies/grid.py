"""The candidates of a search: tuples of indices, one into the value list of each group of the search space; index 0
is the full value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from shearling.elastic.search_space import SearchSpace

Indices = tuple[int, ...]

FROZEN: Indices = ()
"""No candidate, but what they are compared with: the frozen model, without an adapter."""

Landmark = Literal["largest", "middle", "smallest"]
"""A candidate that every grid has."""


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

    def holds(self, candidate: object) -> bool:
        """Whether it is a tuple of one index for every group; numpy's integers are none, a journal cannot hold them."""
        return (
            isinstance(candidate, tuple)
            and len(candidate) == len(self.sizes)
            and all(type(index) is int and 0 <= index < size for index, size in zip(candidate, self.sizes, strict=True))
        )

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
        moves = [
            (place, index + step)
            for place, index in enumerate(indices)
            for step in (-1, 1)
            if 0 <= index + step < self.sizes[place]
        ]
        return [(*indices[:place], moved, *indices[place + 1 :]) for place, moved in moves]
