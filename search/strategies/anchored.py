"""Any strategy, with the sub-networks in front that every search is compared with.

The largest is what a search must not lose to, the middle is what needs no search, and the smallest shows how far down
accuracy holds. Asking for them here spares every strategy the thought. They come on top of what a strategy may spend;
one that asks for them itself has them for nothing, from the journal.
"""

from __future__ import annotations

from collections.abc import Sequence

from search.strategies.cost_limit import CostLimit
from search.strategies.grid import Grid, Indices
from search.strategies.strategy import Strategy, Trial


def anchors_of(grid: Grid, limit: CostLimit | None) -> tuple[Indices, ...]:
    """The largest, the middle and the smallest sub-network, each once; the middle where the limit allows it."""
    middle = (grid.heuristic,) if limit is None or limit.allows(grid.heuristic) else ()
    return tuple(dict.fromkeys((grid.maximal, *middle, grid.minimal)))


class Anchored:
    """See the module.

    Args:
        strategy: fresh.
        anchors: asked for first; the strategy is not told of them.
    """

    def __init__(self, strategy: Strategy, anchors: Sequence[Indices]) -> None:
        self.planned = len(anchors) + strategy.planned
        self._strategy = strategy
        self._anchors = list(anchors)
        self._answering = False

    @property
    def parent(self) -> Indices | None:
        """See `Strategy.parent`."""
        return self._strategy.parent if self._answering else None

    def ask(self) -> Sequence[Indices]:
        """The anchors, then what the strategy asks for."""
        if self._anchors:
            asked, self._anchors = self._anchors, []
            return asked
        self._answering = True
        return self._strategy.ask()

    def tell(self, trials: Sequence[Trial]) -> None:
        """Tell the strategy what it has asked for."""
        if self._answering:
            self._strategy.tell(trials)
