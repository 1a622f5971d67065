"""Several processes generate at once, and take turns of milliseconds, so that all of them meet the same machine.

What disturbs a machine lasts for tenths of a second, about as long as a short generation: where one process generates
after the other, one meets it and the other does not. Here each is stopped (SIGSTOP) while it is not its turn, whatever
runtime it has, and what it stood still is taken out of its times. The next one goes on when the stop has taken effect,
since two that compute on one CPU at once would disturb each other.

Every turn begins with caches that the others have filled, so that all are a little slower than alone: 2 % with a model
of 90 MiB and turns of 20 ms. It is their ratio that is sharper, not their times.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Sequence

from serve.bench.worker_process import Timed, WorkerProcess
from serve.bench.workload import Rows

Turn = tuple[float, float]
"""From and until when a process could run; seconds of `time.perf_counter`, which is one clock for all processes."""


def can_take_turns(device: str) -> bool:
    """Whether stopping a process stops its work, as on a CPU, and one that is stopped ends with its parent (Linux)."""
    return sys.platform == "linux" and device == "CPU"


def generate_in_turns(works: Sequence[tuple[WorkerProcess, Rows]], *, new_tokens: int, turn_s: float) -> list[Timed]:
    """Let all of them compute `new_tokens` tokens for each of their rows.

    Args:
        works: processes that are idle, and their prompts; the first one begins.
        new_tokens: end tokens or not.
        turn_s: after which the next one goes on.

    Returns:
        In the order of `works`, without the times in which a process was stopped.
    """
    turns: list[list[Turn]] = [[] for _ in works]
    replies: dict[int, Timed] = {}
    for place in itertools.cycle(range(len(works))):
        if len(replies) == len(works):
            break
        if place in replies:
            continue
        worker, rows = works[place]
        begin_s = time.perf_counter()
        if turns[place]:
            worker.go_on()
        else:
            worker.start_generating(rows, new_tokens=new_tokens)
        last = len(replies) == len(works) - 1
        if last or worker.has_answered(within_s=turn_s):
            replies[place] = worker.finish_generating()
        else:
            worker.stop()
        turns[place].append((begin_s, time.perf_counter()))
    return [without_stops(replies[place], turns[place]) for place in range(len(works))]


def without_stops(timed: Timed, turns: Sequence[Turn]) -> Timed:
    """Times of a generation as if its process had never been stopped.

    Args:
        timed: as its process saw it.
        turns: in which it could run; the first one begins before the generation, the last one ends after it.
    """
    generation = timed.generation
    # Not when it was asked: it may have been stopped before it began.
    began_s = generation.started_s
    moments_s = list(itertools.accumulate((began_s + generation.ttft_s, *generation.gaps_s)))
    wall_s = _ran_s(turns, timed.started_s, timed.started_s + timed.wall_s)
    return timed.model_copy(
        update={
            "generation": generation.model_copy(
                update={
                    "ttft_s": _ran_s(turns, began_s, moments_s[0]),
                    "gaps_s": tuple(_ran_s(turns, begin, end) for begin, end in itertools.pairwise(moments_s)),
                    "total_s": _ran_s(turns, began_s, began_s + generation.total_s),
                }
            ),
            "wall_s": wall_s,
            # Two clocks: what they disagree by must not leave a time of nothing.
            "waited_s": None if timed.waited_s is None else min(timed.waited_s, 0.999 * wall_s),
            # A hypervisor takes from whoever runs.
            "stolen_s": None if timed.stolen_s is None else timed.stolen_s * wall_s / timed.wall_s,
        }
    )


def _ran_s(turns: Sequence[Turn], begin_s: float, end_s: float) -> float:
    return sum(max(0.0, min(end_s, until_s) - max(begin_s, from_s)) for from_s, until_s in turns)
