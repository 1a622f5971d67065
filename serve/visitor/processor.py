"""Which processor this is."""

from __future__ import annotations

import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def read_processor() -> tuple[str, tuple[str, ...]]:
    """Its name, and its instruction sets, sorted."""
    facts: dict[str, str] = {}
    if CPUINFO.is_file():
        for line in CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            facts.setdefault(key.strip(), value.strip())
    parts = [facts.get("model name", platform.processor() or platform.machine())]
    if "cpu family" in facts:
        # Virtual machines often hide the name; family and model still tell generations apart.
        parts.append(f"(family {facts['cpu family']}, model {facts.get('model', '?')})")
    return " ".join(parts), tuple(sorted(facts.get("flags", facts.get("Features", "")).split()))
