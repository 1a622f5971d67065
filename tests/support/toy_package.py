"""A distribution from outside this project, as small as it can be: one module, and one entry point that names it."""

from __future__ import annotations

import os
from pathlib import Path


def toy_package(root: Path, *, group: str, name: str, code: str) -> dict[str, str]:
    """Write the module `toy_<name>` and the metadata of its distribution, as an installer would leave them.

    Args:
        root: a new directory; it becomes the first of the module search path.
        group: the entry-point group of a registry.
        name: of the member.
        code: of the module; its record is `ENTRY`.

    Returns:
        The environment for `subprocess.run`.
    """
    metadata = root / "toy-0.1.dist-info"
    metadata.mkdir(parents=True)
    (root / f"toy_{name}.py").write_text(code, encoding="utf-8")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 0.1\n", encoding="utf-8")
    (metadata / "entry_points.txt").write_text(f"[{group}]\n{name} = toy_{name}:ENTRY\n", encoding="utf-8")
    paths = [str(root), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
