from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.deployments import shared_export
from tests.support.once_per_run import writable_copy


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An `export` artefact that no test may change."""
    return shared_export(tmp_path_factory)


@pytest.fixture
def copy_of(export: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Copies of the export, or of one part of it, that a test may break."""

    def copy(part: str = "") -> Path:
        return writable_copy(export / part, tmp_path / (part or "export"))

    return copy
