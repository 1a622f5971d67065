"""Time lost to other processes, as the kernel counts it: ready to run, and not running.

Where one thread computes at a time, its wall time minus this wait is what it needs, whatever else the machine does: the
difference agrees with an idle machine where the wall time trebles. It is no CPU time: a model that sleeps or waits for
a disk is not excused. With several threads that compute at once the waits overlap, and nothing can be subtracted, but
on a single CPU: there the process has lost no more than the time in which none of its threads ran.

From /proc/self/task/*/schedstat (Linux, Documentation/scheduler/sched-stats.rst): nanoseconds on a CPU, nanoseconds
waiting for one, number of timeslices. What a hypervisor takes away is not in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from serve.visitor.own_process import own_threads

TASKS = Path("/proc/self/task")
SCHEDSTAT = Path("/proc/thread-self/schedstat")
COMPUTING_SHARE = 0.05
"""Of the process's time on CPUs: a thread with less does not compute, and may wait while another one does."""

ThreadTimes = Mapping[int, tuple[int, int]]
"""Nanoseconds on a CPU and waiting for one, by thread."""


def waited_s() -> float | None:
    """Seconds that the calling thread has waited for a CPU so far; None where the system does not count."""
    try:
        return int(SCHEDSTAT.read_text(encoding="ascii").split()[1]) / 1e9
    except (FileNotFoundError, IndexError):
        return None


def thread_times() -> ThreadTimes | None:
    """Of all threads of this process; None where the system does not count."""
    found = {}
    for thread in own_threads():
        try:
            ran, waited = (TASKS / str(thread) / "schedstat").read_text(encoding="ascii").split()[:2]
        except (FileNotFoundError, ProcessLookupError, ValueError):
            continue
        found[thread] = (int(ran), int(waited))
    return found or None


def waited_between(before: ThreadTimes | None, after: ThreadTimes | None) -> float | None:
    """Seconds that those threads waited for a CPU which computed meanwhile.

    A runtime may compute in another thread than it was called in, and hand the work from one to the next.

    Args:
        before: see `thread_times`.
        after: later.
    """
    if before is None or after is None:
        return None
    spent = [
        (ran - before.get(thread, (0, 0))[0], waited - before.get(thread, (0, 0))[1])
        for thread, (ran, waited) in after.items()
    ]
    busy = sum(ran for ran, _ in spent)
    return sum(waited for ran, waited in spent if ran >= COMPUTING_SHARE * busy) / 1e9
