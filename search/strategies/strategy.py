"""What a search strategy is: it asks for candidates, and is told how they did.

One is made by calling the implementation of its record in `shearling.registry.search_algorithms` with a `Grid`, the
candidates, and an `Effort`. Strategies are deterministic functions of their seed and of what they are told, which is
how an interrupted search resumes: the journal's outcomes are told again.

A search goes `ask`, `tell`, `ask`, `tell`, until an `ask` returns nothing. A candidate is a tuple of Python's integers,
one index into the values of every group, from 0, the largest value. What a strategy asks for is checked at once, and
the search stops with an error that names the algorithm: at a candidate that the space does not hold, and before a
generation that goes beyond `planned`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from search.strategies.cost_limit import CostLimit
from search.strategies.grid import Grid, Indices
from shearling.errors import ShearlingError
from shearling.registry.search_algorithms import SEARCH_ALGORITHMS

DEFECT = "This is a defect of the algorithm: report it to its authors, and search with another"
"""What to do about a strategy that breaks the protocol."""

Cost = Literal["none", "adapter_params", "parameters", "nonzero_params", "macs", "bytes", "latency"]
"""What a search saves: nothing; weights of the adapter; weights, nonzero weights, multiply-accumulates, bytes or the
time of the exported model."""

CostOption = Literal["auto", "none", "adapter_params", "parameters", "nonzero_params", "macs", "bytes", "latency"]
"""One of them, or to decide it by what sub-networks differ in."""


@dataclass(frozen=True)
class Effort:
    """What a strategy may spend; it takes from it what it has a use for.

    Attributes:
        evaluations: most candidates.
        seed: of its random draws.
        population: candidates of a generation (NSGA-II), or neighbours tried in a round (hill climbing).
        limit: what its candidates may cost. Only the largest, in NSGA-II's first generation, may cost more.
    """

    evaluations: int
    seed: int = 0
    population: int = 8
    limit: CostLimit | None = None


@dataclass(frozen=True)
class Trial:
    """How one candidate did.

    Attributes:
        accuracy: to be maximised.
        cost: to be minimised: what the search was told to save; the same of all where that is nothing.
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
        """Most candidates that it will ask for, known before the first `ask`, and no more than `Effort.evaluations`.

        It is binding. A candidate that was asked for before is not measured again, and counts again.
        """
        ...

    @property
    def parent(self) -> Indices | None:
        """The candidate that those last asked for were derived from; read after `ask`, kept for the journal alone.

        One of an earlier `ask`. A strategy whose candidates have no single origin leaves it None for good.
        """
        ...

    def ask(self) -> Sequence[Indices]:
        """The next generation of candidates, a list of tuples; empty when the search is over."""
        ...

    def tell(self, trials: Sequence[Trial]) -> None:
        """The trials of the candidates last asked for, in their order; not called after an empty `ask`."""
        ...


def make_strategy(algorithm: str, grid: Grid, effort: Effort) -> Strategy:
    """The strategy of this name.

    Raises:
        UsageError: there is none, or the effort is too small for it.
        ShearlingError: it plans more than it may spend.
    """
    strategy: Strategy = SEARCH_ALGORITHMS.get(algorithm, where="algorithm").load()(grid, effort)
    if strategy.planned > effort.evaluations:
        raise ShearlingError(
            f"the search algorithm {algorithm} plans {strategy.planned} evaluations, {effort.evaluations} are allowed",
            remedy=DEFECT,
        )
    return strategy
