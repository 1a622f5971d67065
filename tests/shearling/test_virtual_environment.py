"""Environments whose Python hangs, or cannot be started."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from shearling.errors import PackageMissing
from shearling.registry.runtimes import RUNTIMES
from shearling.virtual_environment import installed_version, require_packages

QUESTIONS: dict[str, Callable[[Path], object]] = {
    "packages": lambda place: require_packages(RUNTIMES.get("gguf"), place),
    "version": lambda place: installed_version("openvino", place),
}


@pytest.mark.parametrize(
    ("script", "reason"), [("#!/bin/sh\nexec sleep 60\n", "nothing was said for 0.2 s"), ("", "Exec format error")]
)
@pytest.mark.parametrize("asked", QUESTIONS)
def test_a_python_that_does_not_answer_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, script: str, reason: str
) -> None:
    monkeypatch.setattr("shearling.virtual_environment.ANSWER_S", 0.2)
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(script)
    python.chmod(0o755)
    with pytest.raises(PackageMissing, match=f"its Python does not answer: {reason}"):
        QUESTIONS[asked](tmp_path)
