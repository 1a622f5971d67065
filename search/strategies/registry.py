"""The strategies by their names."""

from __future__ import annotations

from search.strategies.cost_limit import Budget
from search.strategies.grid import Grid
from search.strategies.hill_climbing import HillClimbing
from search.strategies.nsga2 import Evolution
from search.strategies.sampling import HeuristicOnly, UniformSampling
from search.strategies.strategy import Algorithm, Strategy


def make_strategy(
    algorithm: Algorithm, grid: Grid, *, evaluations: int, population: int, seed: int, budget: Budget | None = None
) -> Strategy:
    """Build a strategy.

    Args:
        algorithm: its name.
        grid: the space.
        evaluations: most candidates.
        population: candidates of a generation (NSGA-II), or neighbours tried in a round (hill climbing).
        seed: of its random draws.
        budget: what its candidates may cost; the heuristic, and the largest of NSGA-II's first generation, may cost
            more.

    Raises:
        UsageError: fewer evaluations than one generation needs.
    """
    match algorithm:
        case "heuristic":
            return HeuristicOnly(grid)
        case "random":
            return UniformSampling(grid, evaluations=evaluations, seed=seed, budget=budget)
        case "hill_climbing":
            return HillClimbing(grid, evaluations=evaluations, neighbours=population, seed=seed, budget=budget)
        case "nsga2":
            return Evolution(grid, evaluations=evaluations, population=population, seed=seed, budget=budget)
