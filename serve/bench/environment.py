"""Which machine, which versions: without it a timing is a number without a unit."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping
from pathlib import Path

import pydantic

from serve.visitor.own_process import usable_cpus
from serve.visitor.processor import read_processor
from shearling.artefact import installed_tools, package_versions
from shearling.strict_json import Document

RUNTIMES = ("openvino-genai", "openvino-tokenizers", "onnx", "numpy", "onnxruntime-gpu", "onnxruntime-genai")
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
    cpu, flags = read_processor()
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


def differing_versions(first: Mapping[str, str], second: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Package -> its two versions, where they differ."""
    names = sorted(set(first) | set(second))
    pairs = {name: (first.get(name, "absent"), second.get(name, "absent")) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
