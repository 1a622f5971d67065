"""The sub-networks whose layers all chose alike, at their largest ranks and widths: what a mixture has to beat, and so
what a search of mixtures looks at first.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from search.strategies.cost_limit import CostLimit
from search.strategies.grid import Indices

if TYPE_CHECKING:
    from shearling.elastic.search_space import SearchSpace


def uniform_mixtures(space: SearchSpace, limit: CostLimit | None = None) -> tuple[Indices, ...]:
    """Every share of zeros with every format, where the limit allows it; nothing where layers have no choice of either.

    A layer that cannot take a share keeps that of its training.

    Args:
        space: of the search.
        limit: that sub-networks keep.
    """
    if not space.mixed_groups:
        return ()
    # A kind that layers have no choice of has no group that asks for its 0.
    percents, formats = (
        sorted({value for group in space.mixed_groups if group.kind == kind for value in group.values} or {0})
        for kind in ("sparsity", "format")
    )
    found = []
    for percent, bits in itertools.product(percents, formats):
        wanted = {"sparsity": percent, "format": bits}
        indices = tuple(
            group.values.index(value) if (value := wanted.get(group.kind)) in group.values else 0
            for group in space.groups
        )
        if limit is None or limit.allows(indices):
            found.append(indices)
    return tuple(dict.fromkeys(found))
