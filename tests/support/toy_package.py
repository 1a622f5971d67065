"""A distribution that adds one member to a registry, as another project would install it."""

from __future__ import annotations

import os
from pathlib import Path


def toy_package(root: Path, *, group: str, name: str, code: str) -> dict[str, str]:
    """Write a module and its metadata.

    Args:
        root: an empty or absent directory.
        group: of the entry point, such as `shearling.runtimes`.
        name: of the member; its module is `toy_<name>`.
        code: of the module; its record is `ENTRY`.

    Returns:
        An environment for `subprocess.run` in which Python finds it.
    """
    module = f"toy_{name}"
    facts = root / "toy-0.1.dist-info"
    facts.mkdir(parents=True)
    (root / f"{module}.py").write_text(code, encoding="utf-8")
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 0.1\n", encoding="utf-8")
    (facts / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}:ENTRY\n", encoding="utf-8")
    paths = filter(None, [str(root), os.environ.get("PYTHONPATH")])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
