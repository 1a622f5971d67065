"""A journal of checks is of one guard: a newer one does not go on with what an older one counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import latency_guard
from benchmarks.latency_guard import DECIDING, SERVE, TELLING, main


@pytest.mark.parametrize(
    ("known", "words"),
    [({"guard": "older"}, "made with guard = older, not"), ({"rivals": 1}, "nothing says with what guard")],
)
def test_a_newer_guard_does_not_go_on_with_an_older_journal(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    known: dict[str, Any],
    words: str,
) -> None:
    monkeypatch.setattr(latency_guard, "run_check", lambda *_, **__: pytest.fail("it checks"))
    model, work = tmp_path / "model", tmp_path / "work"
    for directory in (model, work):
        directory.mkdir()
    (model / "config.json").write_text("{}")
    (work / "settings.json").write_text(json.dumps(known))
    (work / "checks.jsonl").write_text("")
    with pytest.raises(SystemExit, match="2"):
        main(["--model", str(model), "--work", str(work), "--rivals", "1"])
    told = " ".join(capsys.readouterr().err.split())
    assert words in told
    assert "Choose another directory, or delete this one" in told


def test_the_rooms_that_decide_are_there() -> None:
    assert all(any((SERVE / room).glob("*.py")) for room in DECIDING)
    assert all(any((SERVE / room / name).is_file() for room in DECIDING) for name in TELLING)
