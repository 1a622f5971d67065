"""The published table of pruners is what its published cells say."""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.pruning.cell import check_recipes
from benchmarks.pruning.report import REPORT_FILE, write_report

PUBLISHED = Path(__file__).resolve().parents[2] / "docs" / "pruning"


def test_the_table_is_made_of_the_cells_beside_it(tmp_path: Path) -> None:
    shutil.copytree(PUBLISHED / "cells", tmp_path / "cells")
    write_report(tmp_path)
    published = (PUBLISHED / REPORT_FILE).read_text(encoding="utf-8")
    assert (tmp_path / REPORT_FILE).read_text(encoding="utf-8") == published, (
        "run: python -m benchmarks.pruning --output docs/pruning --report"
    )


def test_cells_are_those_that_the_code_makes() -> None:
    check_recipes(PUBLISHED)
