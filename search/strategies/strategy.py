"""What a search strategy is: it asks for candidates, and is told how they did.

Strategies are deterministic functions of their seed and of what they are told, which is how an interrupted search
resumes: the journal's outcomes are told again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from search.strategies.grid import Indices

Algorithm = Literal["heuristic", "random", "hill_climbing", "nsga2"]
Cost = Literal["adapter_params", "parameters", "macs", "latency"]
"""What a search saves: weights of the adapter, weights or multiply-accumulates of the model, or its time."""


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
