"""What a process knows of itself and decides for itself: its memory, its CPUs, its priority."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from pathlib import Path

MEASURING_NICE = -10
PR_SET_PDEATHSIG = 1


def peak_memory_bytes() -> int:
    """Highest resident memory of this process so far.

    From VmHWM: `ru_maxrss` would start with what the parent held when it forked.
    """
    return _status_bytes("VmHWM")


def memory_bytes() -> int:
    """Resident memory of this process now."""
    return _status_bytes("VmRSS")


def private_memory_bytes() -> int:
    """Resident memory of this process that no file backs."""
    return _status_bytes("RssAnon")


def huge_memory_bytes() -> int:
    """Memory of this process in huge pages; 0 where the system does not tell."""
    rollup = Path("/proc/self/smaps_rollup")
    lines = rollup.read_text(encoding="ascii").splitlines() if rollup.is_file() else []
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("AnonHugePages:"))


def pin(threads: int | None) -> None:
    """Keep this process on the last `threads` of its CPUs; the first ones serve interrupts.

    All its threads: a runtime may compute in one that it has started while it loaded.

    Args:
        threads: None leaves all of them.
    """
    cpus = usable_cpus()
    if threads is not None and threads < len(cpus) and hasattr(os, "sched_setaffinity"):
        for thread in own_threads():
            # It may have ended.
            with contextlib.suppress(OSError):
                os.sched_setaffinity(thread, cpus[-threads:])


def own_threads() -> tuple[int, ...]:
    """Threads of this process, as the system numbers them; 0, the calling one, where it does not tell."""
    tasks = Path("/proc/self/task")
    return tuple(int(task.name) for task in tasks.iterdir()) if tasks.is_dir() else (0,)


def end_with_parent() -> None:
    """Be killed when the thread that started this process ends, stopped or not, where the system offers it (Linux,
    prctl(2)).
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def raise_priority() -> None:
    """Let this process go before others, where the system permits: what it measures is over sooner, and less
    disturbed.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, MEASURING_NICE)


def usable_cpus() -> tuple[int, ...]:
    """The CPUs that the calling thread may use."""
    return (
        tuple(sorted(os.sched_getaffinity(0)))
        if hasattr(os, "sched_getaffinity")
        else tuple(range(os.cpu_count() or 1))
    )


def _status_bytes(field: str) -> int:
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    import psutil

    return int(psutil.Process().memory_info().rss)
