"""What an interrupted comparison shows that is kept nowhere."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from rich.markup import escape
from rich.table import Table

from serve.bench import stage


def test_names_with_brackets_keep_them(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def screen(benchmark: object) -> Table:
        table = Table("model")
        table.add_row(escape("runs/[old] one"))
        return table

    monkeypatch.setattr(stage, "benchmark_screen", screen)
    stage._show_unfinished(SimpleNamespace())  # type: ignore[arg-type]  # the screen is one of the test
    assert "runs/[old] one" in capsys.readouterr().err
