"""Load times side by side: new processes for every pair, in the order A B B A."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from serve.bench.measurement import timed_progress
from serve.bench.time_budget import TimeBudget
from serve.bench.worker_process import WorkerProcess
from serve.runtimes.deployment import Deployment
from serve.runtimes.runtime import RunOptions

LoadTimes = list[tuple[float, ...]]
"""Seconds, one row for each round, one column for each deployment."""


def measure_loads(
    deployments: Sequence[Deployment], options: RunOptions, *, budget_s: float, enough: Callable[[LoadTimes], bool]
) -> LoadTimes:
    """Load deployments again and again, one at a time.

    Args:
        deployments: verified; their files are in the page cache.
        options: the same for all.
        budget_s: begin no further round after so many seconds.
        enough: looks at what there is after each round.

    Raises:
        ShearlingError: of the class that a worker raised.
    """
    rounds: LoadTimes = []
    budget = TimeBudget(budget_s)
    with timed_progress(budget_s) as advance:
        while not rounds or not (budget.spent() or enough(rounds)):
            order = list(range(len(deployments)))[:: 1 if len(rounds) % 2 == 0 else -1]
            taken = dict.fromkeys(order, 0.0)
            for place in order:
                with WorkerProcess(deployments[place], options) as worker:
                    taken[place] = worker.load().load_s
                advance(note=f"loaded in {taken[place]:.2f} s")
            rounds.append(tuple(taken[place] for place in range(len(deployments))))
    return rounds
