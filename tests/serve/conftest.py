from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.deployments import write_export


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An `export` artefact that no test may change."""
    return write_export(tmp_path_factory.mktemp("serve") / "export")


@pytest.fixture
def copy_of(export: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Copies of the export, or of one part of it, that a test may break."""

    def copy(part: str = "") -> Path:
        return Path(shutil.copytree(export / part, tmp_path / (part or "export")))

    return copy
