"""What the evolutionary strategies have in common: pymoo, with the operators of LoNAS and Shears.

Objectives: cost (adapter parameters, unless told otherwise) and the error, one less the accuracy, both minimised. SBX
crossover (probability 0.9, eta 10) and polynomial mutation (eta 3), rounded to integers; floor(evaluations /
population) generations; duplicates eliminated. The first generation holds the maximal, the heuristic and the minimal
sub-network, which span the front from the start, and uniform draws. Within a limit on the cost all but the maximal one
are shrunk to it, and so is every candidate after.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from search.strategies.cost_limit import CostLimit
from search.strategies.drawing import draw_new
from search.strategies.grid import Grid, Indices
from search.strategies.strategy import Effort, Trial
from shearling.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

CROSSOVER_PROBABILITY = 0.9
CROSSOVER_ETA = 10
MUTATION_ETA = 3
MUTATION_PROBABILITY = 0.02
"""Per group; 1 / groups where that is more, or a small space would hardly mutate."""


class Evolution(abc.ABC):
    """See the module; a subclass says who survives.

    Args:
        grid: the space.
        effort: its evaluations are rounded down to whole generations.

    Raises:
        UsageError: the evaluations are fewer than the population.
    """

    parent: Indices | None = None

    def __init__(self, grid: Grid, effort: Effort) -> None:
        population = min(effort.population, grid.size)
        self._generations = effort.evaluations // population
        if self._generations < 1:
            raise UsageError(
                f"{effort.evaluations} evaluations are less than one population of {population}",
                remedy="Raise --evaluations or lower --population",
            )
        self.planned = self._generations * population
        self._asked = 0
        self._pending: Any = None
        self._problem, operators = _operators(grid, population=population, seed=effort.seed, limit=effort.limit)
        self._algorithm = self.make_algorithm(operators)
        # The number of generations is ours to count: the algorithm must not stop by a criterion of its own.
        self._algorithm.setup(self._problem, termination=("n_gen", 2**31), seed=effort.seed, verbose=False)

    @abc.abstractmethod
    def make_algorithm(self, operators: Mapping[str, Any]) -> Any:
        """The algorithm of pymoo.

        Args:
            operators: keyword arguments that all of them take.
        """

    def ask(self) -> Sequence[Indices]:
        """The next generation; smaller than the population where the space runs out of new candidates."""
        if self._asked == self._generations:
            return []
        self._asked += 1
        self._pending = self._algorithm.ask()
        if self._pending is None:
            self._asked = self._generations
            return []
        return [tuple(int(value) for value in row) for row in self._pending.get("X")]

    def tell(self, trials: Sequence[Trial]) -> None:
        """Select the survivors."""
        import numpy as np
        from pymoo.core.evaluator import Evaluator
        from pymoo.problems.static import StaticProblem

        objectives = np.array([[trial.cost, 1 - trial.accuracy] for trial in trials], dtype=float)
        Evaluator().eval(StaticProblem(self._problem, F=objectives), self._pending)
        self._algorithm.tell(infills=self._pending)


def _operators(grid: Grid, *, population: int, seed: int, limit: CostLimit | None) -> tuple[Any, dict[str, Any]]:
    import numpy as np
    from pymoo.core.problem import Problem
    from pymoo.operators.crossover.sbx import SBX
    from pymoo.operators.mutation.pm import PM
    from pymoo.operators.repair.rounding import RoundingRepair

    class KeepingLimit(RoundingRepair):
        """Offspring are made of integers, and are shrunk to the limit. Not a repair of the algorithm: that one meets
        its first generation, too.
        """

        def _do(self, problem: Problem, x: Any, **kwargs: Any) -> Any:
            rounded = super()._do(problem, x, **kwargs)
            if limit is None:
                return rounded
            return np.array([limit.shrink(tuple(int(index) for index in row), grid, random) for row in rounded])

    random = np.random.default_rng(seed)
    groups = len(grid.sizes)
    problem = Problem(n_var=groups, n_obj=2, xl=np.zeros(groups), xu=np.array(grid.minimal, dtype=float), vtype=int)
    # In today's pymoo `prob` is per candidate and `prob_var` per variable; the papers' number is the latter.
    mutation = PM(
        prob=1.0,
        prob_var=min(0.25, max(MUTATION_PROBABILITY, 1 / groups)),
        eta=MUTATION_ETA,
        vtype=float,
        repair=KeepingLimit(),
    )
    return problem, {
        "pop_size": population,
        "sampling": _first_generation(grid, population=population, random=random, limit=limit),
        "crossover": SBX(prob=CROSSOVER_PROBABILITY, eta=CROSSOVER_ETA, vtype=float, repair=RoundingRepair()),
        "mutation": mutation,
        "eliminate_duplicates": True,
    }


def _first_generation(grid: Grid, *, population: int, random: np.random.Generator, limit: CostLimit | None) -> Any:
    import numpy as np

    middle = grid.heuristic if limit is None else limit.shrink(grid.heuristic, grid, random)
    smallest = grid.minimal if limit is None else limit.shrink(grid.minimal, grid, random)
    anchors = list(dict.fromkeys((grid.maximal, middle, smallest)))[:population]
    seen = set(anchors)
    drawn = [draw_new(grid, random, seen=seen, limit=limit) for _ in range(population - len(anchors))]
    return np.array([*anchors, *(indices for indices in drawn if indices is not None)], dtype=int)
