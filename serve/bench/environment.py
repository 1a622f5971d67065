"""Which machine, which versions: without it a timing is a number without a unit."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
from pathlib import Path

import pydantic

from shearling.artefact import installed_tools, package_versions
from shearling.strict_json import Document

RUNTIMES = ("openvino-genai", "openvino-tokenizers", "onnx", "numpy", "onnxruntime-gpu")
MEASURING_NICE = -10
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


class Environment(Document):
    """Fingerprint of a machine.

    Attributes:
        cpu_flags: instruction sets, sorted.
        logical_cpus: of the machine; usable_cpus: this process may run on.
        governor: of the clock; None where the system hides it.
        load_average: runnable tasks over the last minute when it started: above 0 means that others work here.
        machine_id: digest over CPU, flags, CPU counts and architecture; equal on like machines.
    """

    cpu: str
    cpu_flags: tuple[str, ...]
    logical_cpus: int
    usable_cpus: int
    memory_bytes: int
    governor: str | None
    load_average: float
    system: str
    versions: dict[str, str]
    machine_id: str = pydantic.Field(pattern="^[0-9a-f]{64}$")


def describe_environment() -> Environment:
    """Look at the machine; milliseconds, no heavy imports."""
    cpu, flags = _processor()
    usable = len(usable_cpus())
    logical = os.cpu_count() or 1
    identity = "\n".join([cpu, " ".join(flags), str(logical), str(usable), platform.machine()])
    return Environment(
        cpu=cpu,
        cpu_flags=flags,
        logical_cpus=logical,
        usable_cpus=usable,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        governor=GOVERNOR.read_text(encoding="ascii").strip() if GOVERNOR.is_file() else None,
        load_average=round(os.getloadavg()[0], 2),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        versions=installed_tools() | package_versions(RUNTIMES),
        machine_id=hashlib.sha256(identity.encode()).hexdigest(),
    )


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
    """Keep the calling thread, and those it will start, on the last `threads` of its CPUs; the first ones serve
    interrupts.

    Args:
        threads: None leaves all of them.
    """
    cpus = usable_cpus()
    if threads is not None and threads < len(cpus) and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus[-threads:])


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


def _processor() -> tuple[str, tuple[str, ...]]:
    cpuinfo = Path("/proc/cpuinfo")
    facts: dict[str, str] = {}
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            facts.setdefault(key.strip(), value.strip())
    parts = [facts.get("model name", platform.processor() or platform.machine())]
    if "cpu family" in facts:
        # Virtual machines often hide the name; family and model still tell generations apart.
        parts.append(f"(family {facts['cpu family']}, model {facts.get('model', '?')})")
    return " ".join(parts), tuple(sorted(facts.get("flags", facts.get("Features", "")).split()))
