"""Bad input to a benchmark ends as in the pipeline: one line that says what and where, and its exit code."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

COMMANDS = {
    "executors": ("--run", "MISSING"),
    "frontier": ("--accuracy", "MISSING", "--speed", "MISSING", "--ours", "ours", "--output", "OUT"),
    "guard_simulation": ("simulate", "MISSING"),
    "http_load": ("MISSING",),
    "latency_guard": ("--model", "MISSING", "--work", "OUT"),
    "latency_table": ("--run", "MISSING", "--output", "OUT"),
    "peers": ("decoder", "MISSING", "OUT"),
    "pruning": ("--output", "OUT", "--report"),
    "quality": ("--output", "OUT", "--report"),
    "runtime_wheel": ("MISSING", "--wheel", "MISSING"),
    "search_algorithms": ("MISSING", "--output", "OUT"),
    "training_step": ("--base", "MISSING"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_not_there_is_named_and_nothing_is_left(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"MISSING": str(tmp_path / "missing"), "OUT": str(tmp_path / "out")}
    module = importlib.import_module(f"benchmarks.{name}{'.__main__' * (name in ('pruning', 'quality'))}")
    code = module.main([places.get(argument, argument) for argument in COMMANDS[name]])
    told = capsys.readouterr().err.replace("\n", "")
    assert code in (3, 4), told
    assert told.startswith("error: ")
    assert str(tmp_path) in told
    assert list(tmp_path.iterdir()) == []
