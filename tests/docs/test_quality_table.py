"""The published table of quality is what its published cells say."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from benchmarks.kept_cells import cell_file
from benchmarks.quality.arms import ARMS
from benchmarks.quality.cell import check_recipes, read_cells
from benchmarks.quality.report import REPORT_FILE, write_report

PUBLISHED = Path(__file__).resolve().parents[2] / "docs" / "quality"


def test_the_table_is_made_of_the_cells_beside_it(tmp_path: Path) -> None:
    shutil.copytree(PUBLISHED / "cells", tmp_path / "cells")
    write_report(tmp_path)
    published = (PUBLISHED / REPORT_FILE).read_text(encoding="utf-8")
    assert (tmp_path / REPORT_FILE).read_text(encoding="utf-8") == published, (
        "run: python -m benchmarks.quality --output docs/quality --report"
    )


def test_cells_stand_under_their_own_names() -> None:
    for cell in read_cells(PUBLISHED):
        ratio = cell.ratio.replace(":", "of") or "0"
        name = f"{cell.model}-{cell.task}-{cell.seed}-{ratio}-{cell.arm}"
        assert cell_file(PUBLISHED, name).is_file()
        assert cell.recipe["name"] == name
        assert all(len(figures.answers) == figures.n for figures in cell.subnets)


def test_cells_are_those_that_the_code_makes() -> None:
    check_recipes(PUBLISHED)


def test_the_page_says_which_arms_have_cells() -> None:
    page = (PUBLISHED.parent / "quality.md").read_text(encoding="utf-8")
    [paragraph] = [part for part in page.split("\n\n") if part.startswith("**What has cells.**")]
    decoder, rest = paragraph.split("Of MiniLM")
    encoder, none = (_arms_in(part) for part in rest.split("No model has cells of"))
    cells = read_cells(PUBLISHED)
    assert {cell.model for cell in cells} == {"smollm2", "minilm"}
    assert _arms_in(decoder) == {cell.arm for cell in cells if cell.model == "smollm2"}
    assert encoder == {cell.arm for cell in cells if cell.model == "minilm"}
    assert none == set(ARMS) - {cell.arm for cell in cells}


def _arms_in(text: str) -> set[str]:
    return {name for name in re.findall(r"`([a-z0-9-]+)`", text) if name in ARMS}
