"""Every candidate of a small space."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from search.strategies.grid import Grid, Indices
from search.strategies.strategy import Effort, Trial
from shearling.elastic.search_space import rounded_count
from shearling.errors import UsageError

MOST_LOOKED_AT = 10**6
"""A space with more candidates is not small, whatever a limit on the cost leaves of it."""


class Exhaustive:
    """See the module; all at once, from the largest to the smallest.

    Args:
        grid: the space.
        effort: has to suffice for every candidate within the limit.

    Raises:
        UsageError: it does not.
    """

    parent: Indices | None = None

    def __init__(self, grid: Grid, effort: Effort) -> None:
        if grid.size > MOST_LOOKED_AT:
            raise _too_many(rounded_count(grid.size), effort)
        limit = effort.limit
        everything = itertools.product(*(range(size) for size in grid.sizes))
        self._left = [indices for indices in everything if limit is None or limit.allows(indices)]
        if len(self._left) > effort.evaluations:
            raise _too_many(rounded_count(len(self._left)), effort)
        self.planned = len(self._left)

    def ask(self) -> Sequence[Indices]:
        """All of them, once."""
        asked, self._left = self._left, []
        return asked

    def tell(self, trials: Sequence[Trial]) -> None:
        """Nothing follows from the trials."""


def _too_many(count: str, effort: Effort) -> UsageError:
    return UsageError(
        f"an exhaustive search of this space takes {count} evaluations, {effort.evaluations} are allowed",
        where="--algorithm exhaustive",
        remedy="Raise --evaluations, or let another algorithm choose among them",
    )
