"""Time lost to other processes, as the kernel counts it: ready to run, and not running.

Where the calling thread computes alone, its wall time minus this wait is what it needs, whatever else the machine does:
the difference agrees with an idle machine where the wall time trebles. It is no CPU time: a model that sleeps or waits
for a disk is not excused. With several computing threads the waits overlap, and nothing can be subtracted.

From /proc/thread-self/schedstat (Linux, Documentation/scheduler/sched-stats.rst): nanoseconds on a CPU, nanoseconds
waiting for one, number of timeslices. What a hypervisor takes away is not in it.
"""

from __future__ import annotations

from pathlib import Path

SCHEDSTAT = Path("/proc/thread-self/schedstat")


def waited_s() -> float | None:
    """Seconds that the calling thread has waited for a CPU so far; None where the system does not count."""
    try:
        return int(SCHEDSTAT.read_text(encoding="ascii").split()[1]) / 1e9
    except (FileNotFoundError, IndexError):
        return None
