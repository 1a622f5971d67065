"""Cells of the benchmark of pruning, carried out on a tiny model: each in a process of its own, and kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.kept_cells import unfinished_cells
from benchmarks.pruning import carry_out
from benchmarks.pruning.cell import RECIPE_OPTIONS, PruningCell, PruningDocument, cross, read_cell, read_cells
from benchmarks.pruning.pruners import PRUNERS
from benchmarks.pruning.report import REPORT_FILE, write_report
from benchmarks.quality.arms import parse_ratio
from benchmarks.quality.general_text import GeneralText, bits_per_byte
from benchmarks.quality.models import BenchmarkModel
from shearling.errors import ShearlingError
from shearling.evaluation.evaluator import torch_scorer
from shearling.evaluation.task import read_rows
from shearling.model.checkpoint import load_model, load_tokenizer
from shearling.recipe.recipe import Recipe
from shearling.run import Run
from tests.support.quality_cells import CHOICES, headlines_task
from tests.support.tiny_models import CORPUS, save_tiny
from train.stage import run_recipe

pytestmark = pytest.mark.slow

SHORT = {"steps": 4, "batch_size": 2, "seq_len": 16, "learning_rate": 2e-2}


def tiny_cells(directory: Path) -> dict[str, PruningCell]:
    general = directory / "general.jsonl"
    general.write_text("".join(json.dumps({"0": text}) + "\n" for text in CORPUS * 8))
    model = BenchmarkModel(
        name="tiny",
        title="tiny",
        section={"model_id": "tiny/llama", "path": str(save_tiny("llama_tied_gqa", directory / "source"))},
        calibration={"samples": 8, "seq_len": 16, "path": str(general), "field": "0", "task_rows": True},
        adapter={},
        groups={},
        ranks=(),
        train={},
        search={},
    )
    task = headlines_task(directory, CHOICES)
    healed = PRUNERS["healed"]
    short = replace(healed, sparsity={**healed.sparsity, "healing": SHORT})
    # Each is a process that imports torch.
    pruners = [PRUNERS["dense"], PRUNERS["wanda"], short]
    cells = cross(pruners, [parse_ratio("0.5")], ("task", "both"))
    return {
        tiny.name: tiny
        for cell in cells.values()
        for tiny in [replace(cell, model=model, task=task)]
        if tiny.reading != "both" or tiny.pruner.name == "wanda"
    }


@pytest.fixture(autouse=True)
def _general_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carry_out, "held_back_text", lambda: GeneralText(CORPUS))


def test_cells_are_carried_out_once_each_in_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells, output = tiny_cells(tmp_path), tmp_path / "out"
    processes, original = list[tuple[str, ...]](), carry_out.run_measured
    monkeypatch.setattr(
        carry_out, "run_measured", lambda given, **named: [processes.append(tuple(given)), original(given, **named)][1]
    )
    assert list(cells) == [
        "tiny-dense",
        "tiny-0.5-wanda-task",
        "tiny-0.5-healed-task",
        "tiny-0.5-wanda-both",
    ]
    first = [cells["tiny-0.5-wanda-task"]]
    assert carry_out.carry_out_all(first, output, threads=1) == {}
    kept = read_cell(output / "cells" / "tiny-0.5-wanda-task.json")
    run = Run(output / "run")
    run.sparse.mkdir()
    (run.sparse / "half").write_text("what a pruning leaves that was killed")
    left = unfinished_cells(cells, output, read_cell, options=RECIPE_OPTIONS)
    assert [cell.name for cell in left] == [name for name in cells if name != first[0].name]
    assert carry_out.carry_out_all(left, output, threads=1) == {}
    assert unfinished_cells(cells, output, read_cell, options=RECIPE_OPTIONS) == []
    assert read_cell(output / "cells" / "tiny-0.5-wanda-task.json") == kept
    assert not run.sparse.exists()
    assert [process[-1] == "--begin" for process in processes] == [True, *[False] * 3], "the dense model is made once"

    documents = {(cell.pruner, cell.reading): cell for cell in read_cells(output)}
    _check_what_is_measured(run, documents)
    write_report(output)
    report = (output / REPORT_FILE).read_text(encoding="utf-8")
    assert "| 50 % | Wanda | both |" in report
    _check_that_the_model_was_that_of_the_recipe(cells["tiny-0.5-healed-task"], documents["healed", "task"], tmp_path)
    wanda = cells["tiny-0.5-wanda-task"]
    unfit = replace(wanda, pruner=replace(wanda.pruner, sparsity={"method": "wanda", "calibration": {"seq_len": 9000}}))
    with pytest.raises(ShearlingError, match=r"ended with 2: error: .* a window needs 9000"):
        carry_out.carry_out(unfit, run, threads=1)
    assert not run.sparse.exists()


def _check_what_is_measured(run: Run, documents: dict[tuple[str, str], PruningDocument]) -> None:
    dense = documents["dense", ""]
    assert (dense.sparsity, dense.seconds, dense.peak_bytes) == (0, 0, 0)
    model, tokenizer = load_model(run.base).eval(), load_tokenizer(run.base)
    scorer = torch_scorer(model, tokenizer, precision="auto")
    rows = GeneralText(tuple(row.text for row in read_rows(run.task, "test")))
    assert dense.task_bits_per_byte == bits_per_byte(scorer, rows)
    assert dense.general_bits_per_byte == bits_per_byte(scorer, GeneralText(CORPUS))
    assert {cell.task_sha256 for cell in documents.values()} == {rows.sha256}
    for (pruner, _), cell in documents.items():
        assert cell.threads == 1
        if pruner != "dense":
            assert cell.sparsity == pytest.approx(0.5, abs=0.01)
            assert cell.task_bits_per_byte != dense.task_bits_per_byte
            assert cell.processor_s > 0
            assert 0 < cell.seconds < 600
            assert 2**27 < cell.peak_bytes < 2**33
    by_text = {documents["wanda", reading].task_bits_per_byte for reading in ("task", "both")}
    assert len(by_text) == 2, "the texts differ, and so do the masks"
    found = {pruner: cell.task_bits_per_byte for (pruner, reading), cell in documents.items() if reading != "both"}
    assert len(set(found.values())) == len(found)


def _check_that_the_model_was_that_of_the_recipe(cell: PruningCell, document: PruningDocument, path: Path) -> None:
    other = Run(path / "other")
    run_recipe(Recipe.model_validate(cell.recipe()), other.path)
    scorer = torch_scorer(load_model(other.sparse).eval(), load_tokenizer(other.sparse), precision="auto")
    assert document.general_bits_per_byte == pytest.approx(bits_per_byte(scorer, GeneralText(CORPUS)), rel=1e-5)
