"""What interrupts a computing process, beside the waits of `serve.visitor.waiting`: counted, and never subtracted.

From /proc/stat (Linux, Documentation/filesystems/proc.rst): the eighth figure of a CPU's line is the time that the
hypervisor gave to somebody else while this machine wanted to compute, in ticks of 10 ms. From getrusage(2): how often
a thread was put off its CPU although it could have gone on.
"""

from __future__ import annotations

import os
from pathlib import Path

from serve.visitor.own_process import usable_cpus

STAT = Path("/proc/stat")
STEAL = 8
"""Place in a line, its name included."""


def stolen_s() -> float | None:
    """Seconds that a hypervisor took from the CPUs of the calling thread so far; None where nobody counts."""
    try:
        lines = [line.split() for line in STAT.read_text(encoding="ascii").splitlines() if line.startswith("cpu")]
        ticks = {line[0]: int(line[STEAL]) for line in lines}
        return sum(ticks[f"cpu{cpu}"] for cpu in usable_cpus()) / os.sysconf("SC_CLK_TCK")
    except (FileNotFoundError, IndexError, KeyError):
        return None


def preemptions() -> int | None:
    """How often a thread of this process was put off its CPU so far; None where nobody counts."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
