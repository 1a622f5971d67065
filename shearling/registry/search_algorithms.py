"""How a search chooses what to evaluate; what an implementation is, `search.strategies.strategy` says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shearling.registry.registry import Registry, SingleEntry


@dataclass(frozen=True, kw_only=True)
class SearchAlgorithm(SingleEntry):
    """A search algorithm; its implementation makes a `Strategy` from a `Grid` and an `Effort`.

    Attributes:
        spends: evaluations one by one, in whole generations of the population, or one for everything there is: what it
            cannot begin with is refused before the training.
    """

    spends: Literal["single", "generations", "everything"] = "single"


SEARCH_ALGORITHMS: Registry[SearchAlgorithm] = Registry(
    noun="search algorithm",
    group="shearling.search_algorithms",
    entry_type=SearchAlgorithm,
    entries=(
        SearchAlgorithm(
            name="heuristic",
            summary="the middle value of every group, shrunk where a limit asks for it",
            implementation="search.strategies.sampling:HeuristicOnly",
        ),
        SearchAlgorithm(
            name="random",
            summary="uniform draws",
            implementation="search.strategies.sampling:UniformSampling",
        ),
        SearchAlgorithm(
            name="hill_climbing",
            summary="from the heuristic to better neighbours",
            implementation="search.strategies.hill_climbing:HillClimbing",
        ),
        SearchAlgorithm(
            name="nsga2",
            summary="a population that evolves towards the front of accuracy and cost",
            implementation="search.strategies.nsga2:Nsga2",
            spends="generations",
        ),
        SearchAlgorithm(
            name="rnsga2",
            summary="the same, towards the part of the front that is near to no cost and no error",
            implementation="search.strategies.rnsga2:Rnsga2",
            spends="generations",
        ),
        SearchAlgorithm(
            name="exhaustive",
            summary="every sub-network of a small space",
            implementation="search.strategies.exhaustive:Exhaustive",
            spends="everything",
        ),
    ),
)
