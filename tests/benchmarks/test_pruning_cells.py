"""The cells of the benchmark of pruning: their recipes are recipes, and a finished one is not run again."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.kept_cells import keep_cell
from benchmarks.peak_memory import Measured
from benchmarks.pruning import carry_out
from benchmarks.pruning.__main__ import main
from benchmarks.pruning.cell import PruningCell, PruningDocument, cross
from benchmarks.pruning.pruners import DENSE, PRUNERS, REFERENCE
from benchmarks.quality.arms import parse_ratio
from shearling.errors import ShearlingError
from shearling.recipe.recipe import Recipe
from shearling.run import Run
from tests.support.pruning_cells import pruning_document

RATIOS = tuple(parse_ratio(text) for text in ("0.5", "0.7", "2:4"))
NOTHING_UNIFORM = {"owl", "searched", "owl-sparsegpt-healed"}


def all_cells() -> dict[str, PruningCell]:
    return cross(PRUNERS.values(), RATIOS, ("task", "general", "both"))


def test_every_cell_has_a_valid_recipe_that_ends_with_the_pruned_model() -> None:
    for name, cell in all_cells().items():
        recipe = Recipe.model_validate(cell.recipe())
        assert recipe.name == name
        assert (recipe.adapter, recipe.train, recipe.model.adaptation) == (None, None, None)
        sparsity = recipe.sparsity
        assert sparsity is not None
        if cell.ratio is None:
            assert (cell.pruner.name, sparsity.ratio, sparsity.calibrated) == (DENSE, 0.0, False)
        else:
            expected = ("2:4", 0.5) if cell.ratio.text == "2:4" else ("unstructured", float(cell.ratio.text))
            assert (sparsity.pattern, sparsity.ratio) == expected
            assert sparsity.calibrated == (cell.reading is not None) == cell.pruner.reads_text
        assert len(cell.pruner.title) <= 24


def test_texts_are_those_of_the_demo_of_another_source_or_of_both() -> None:
    cells = all_cells()
    texts = {
        reading: Recipe.model_validate(cells[f"smollm2-0.5-wanda-{reading}"].recipe()).sparsity
        for reading in ("task", "general", "both")
    }
    found = {
        reading: (section.calibration.names_file, section.calibration.task_rows)
        for reading, section in texts.items()
        if section is not None
    }
    assert found == {"task": (False, False), "general": (True, False), "both": (True, True)}
    windows = {section.calibration.samples for section in texts.values() if section is not None}
    assert windows == {32}
    more = replace(cells["smollm2-0.5-healed-both"], samples=96).recipe()["sparsity"]
    assert (more["calibration"]["samples"], more["healing"]["steps"]) == (96, 100)


def test_what_does_not_know_of_ratio_or_text_has_one_cell_for_all() -> None:
    cells = all_cells()
    assert [name for name in cells if DENSE in name] == ["smollm2-dense"]
    assert [name for name in cells if "magnitude" in name] == [
        f"smollm2-{ratio}-magnitude" for ratio in ("0.5", "0.7", "2of4")
    ]
    semi_structured = {
        cell.pruner.name for cell in cells.values() if cell.ratio is not None and cell.ratio.text == "2:4"
    }
    assert semi_structured == set(PRUNERS) - NOTHING_UNIFORM - {DENSE}
    assert REFERENCE in PRUNERS


def finished(cell: PruningCell) -> PruningDocument:
    ratio, reading = cell.ratio.text if cell.ratio else "", cell.reading or ""
    return pruning_document(cell.pruner.name, 2.3, 1.2, ratio=ratio, reading=reading, recipe=cell.recipe())


def test_a_finished_cell_is_not_run_again_and_one_failure_does_not_end_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    carried_out: list[str] = []

    def stand_in(cell: PruningCell, _run: Run, **_: object) -> PruningDocument:
        carried_out.append(cell.name)
        if cell.pruner.name == "alps" and len(carried_out) < 4:
            raise ShearlingError("its process ended with -9")
        return finished(cell)

    begun: list[PruningCell] = []
    monkeypatch.setattr(carry_out, "carry_out", stand_in)
    monkeypatch.setattr(carry_out, "begin", lambda cell, *_, **__: begun.append(cell))
    command = ["--output", str(tmp_path), "--pruners", "dense,wanda,alps", "--ratios", "0.5"]
    assert main(command) == 1
    assert "failed: smollm2-0.5-alps-task: its process ended with -9" in " ".join(capsys.readouterr().err.split())
    assert carried_out == ["smollm2-dense", "smollm2-0.5-wanda-task", "smollm2-0.5-alps-task"]
    assert main(command) == 0
    assert carried_out[3:] == ["smollm2-0.5-alps-task"]
    assert main(command) == 0
    assert len(carried_out) == 4
    assert len(begun) == 2, "and where nothing is left to do, no model is made"


def test_a_cell_of_another_recipe_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(carry_out, "carry_out_all", lambda *_, **__: pytest.fail("it was to be refused"))
    cell = replace(all_cells()["smollm2-0.5-wanda-task"], samples=96)
    keep_cell(tmp_path, cell.name, finished(cell))
    # Nobody asks for it, and the report would tell it all the same.
    asked = ["--output", str(tmp_path), "--pruners", "alps", "--ratios", "0.7"]
    for command in (asked, [*asked, "--report"]):
        assert main(command) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert "another recipe" in said
        assert f"{cell.name}.json" in said
        assert "repeat --samples" in said
    assert not (tmp_path / "report.md").exists()
    assert main([*asked, "--report", "--samples", "96"]) == 0


@pytest.mark.parametrize(("ended", "code"), [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (-9, 4)])
def test_a_benchmark_that_cannot_begin_ends_as_its_process_did(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ended: int,
    code: int,
) -> None:
    died = Measured(ended, 0, 0.0, log="making the base\nerror: no space left\n", output="")
    monkeypatch.setattr(carry_out, "run_measured", lambda *_, **__: died)
    assert main(["--output", str(tmp_path), "--pruners", "wanda", "--ratios", "0.5"]) == code
    said = " ".join(capsys.readouterr().err.split())
    assert f"smollm2-dense: its process ended with {ended}: error: no space left" in said
    assert not (tmp_path / "cells").exists()


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--pruners", "dense,wandda", "wandda is none of"),
        ("--ratios", "0.5,2", "2 is not between"),
        ("--calibration", "web", "web is none of task, general, both"),
        ("--threads", "0", "0 is less than 1"),
    ],
)
def test_the_command_refuses_what_there_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, said: str
) -> None:
    with pytest.raises(SystemExit) as error:
        main(["--output", str(tmp_path / "out"), option, value])
    assert error.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_help_and_report_import_no_heavy_library() -> None:
    code = "import sys, benchmarks.pruning.__main__; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
