"""The machine that a latency belongs to."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

from shearling.strict_json import Document

CPUINFO = Path("/proc/cpuinfo")
FIELDS = ("model name", "cpu family", "model", "flags", "Features")


class Machine(Document):
    """A processor, and how much of it there is.

    Attributes:
        processor: its name, family and model.
        cpus: that this process may use.
        sha256: of both and of what the processor can do.
    """

    processor: str
    cpus: int
    sha256: str


def this_machine() -> Machine:
    """The one that this process runs on."""
    facts: dict[str, str] = {}
    if CPUINFO.is_file():
        for line in CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            facts.setdefault(key.strip(), value.strip())
    known = [facts.get(field, "") for field in FIELDS]
    # Virtual machines often hide the name; family and model still tell generations apart.
    name = known[0] or platform.processor() or platform.machine()
    processor = f"{name} (family {known[1]}, model {known[2]})" if known[1] else name
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    identity = "\n".join([*known, processor, str(cpus)])
    return Machine(processor=processor, cpus=cpus, sha256=hashlib.sha256(identity.encode()).hexdigest())
