"""Virtual environments for tests of runtimes that are installed apart."""

from __future__ import annotations

import venv
from pathlib import Path


def environment_with(directory: Path, *, module: str, source: str, distribution: str) -> Path:
    """A virtual environment that holds one module, as version 0.0.1 of a distribution, and nothing else."""
    venv.create(directory, with_pip=False)
    (packages,) = directory.glob("lib/python*/site-packages")
    (packages / f"{module}.py").write_text(source)
    facts = packages / f"{distribution.replace('-', '_')}-0.0.1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 0.0.1\n")
    return directory
