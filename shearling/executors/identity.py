"""What decides, beside the request, what a worker answers: versions of packages, and the source of this project."""

from __future__ import annotations

import functools
import hashlib
import platform
from collections.abc import Mapping
from pathlib import Path

from shearling.artefact import installed_tools, package_versions
from shearling.errors import EnvironmentFault

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("shearling", "search")
DECIDING = ("ray", "numpy", "datasets", "tokenizers", "safetensors")
"""Beside the tools that every artefact names."""


@functools.cache
def own_identity() -> Mapping[str, str]:
    """Of this process: name -> version, or digest."""
    return {
        **installed_tools(),
        **package_versions(DECIDING),
        "processor": platform.machine(),
        "source of shearling": _source_digest(),
    }


def check_identity(expected: Mapping[str, str], *, where: str) -> None:
    """Refuse to work for a process of other versions: it would get numbers that it cannot repeat.

    Args:
        expected: identity of the process that asks.
        where: the worker, for the message.

    Raises:
        EnvironmentFault: names every difference.
    """
    own = own_identity()
    differing = [
        f"{name} {own.get(name, 'none')}, not {expected.get(name, 'none')}"
        for name in sorted(own.keys() | expected.keys())
        if own.get(name) != expected.get(name)
    ]
    if differing:
        raise EnvironmentFault(
            f"a worker has other versions than the process that asks: {'; '.join(differing)}",
            where=where,
            remedy="Install the same versions of everything, and the same source of this project, on every node",
        )


def _source_digest() -> str:
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]
