"""Predictions of searches against rows that they were not given, on a tiny run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.prediction_coverage import Prediction, draw_rows, main, table
from shearling.evaluation.task import TaskRow, read_rows
from shearling.run import Run
from tests.support.tiny_runs import tiny_recipe
from train.stage import run_recipe


def test_every_search_is_told_its_own_draw_and_measured_on_the_rest(tmp_path: Path, capsys) -> None:
    run, output = Run(tmp_path / "tiny"), tmp_path / "out"
    run_recipe(tiny_recipe(tmp_path), run.path)
    arguments = [str(run.path), "--output", str(output), "--searches", "2"]
    assert main(arguments) == 0
    first = capsys.readouterr().out
    pool = {row.id: row for split in ("validation", "test") for row in read_rows(run.task, split)}
    drawn = []
    for seed, figures in enumerate(json.loads((output / "figures.json").read_text())):
        task = next((output / f"search-{seed}" / "rows").iterdir())
        given, unseen = ({row.id for row in read_rows(task, split)} for split in ("validation", "test"))
        assert given | unseen == pool.keys()
        assert not given & unseen
        assert len(given) == len(read_rows(run.task, "validation"))
        assert figures["found"] * len(unseen) == pytest.approx(round(figures["found"] * len(unseen)))
        drawn.append(given)
    assert drawn[0] != drawn[1]
    assert not run.search.exists()
    journals = [(output / f"search-{seed}" / "search" / "journal.jsonl").read_bytes() for seed in range(2)]
    assert main(arguments) == 0
    assert capsys.readouterr().out == first
    assert journals == [(output / f"search-{seed}" / "search" / "journal.jsonl").read_bytes() for seed in range(2)]


def test_what_lies_outside_is_counted() -> None:
    def prediction(found: float) -> Prediction:
        return Prediction(seed=0, chosen=0.9, predicted=0.8, interval=(0.7, 0.86), rows=100, found=found, largest=True)

    assert list(table([prediction(0.7), prediction(0.87)]))[-1] == (
        "1 of 2 intervals held it. The prediction was +1.5 points off in the mean, what chose +11.5."
    )


def test_draws_are_parts_of_all_rows() -> None:
    rows = [
        TaskRow(id=str(number), prompt=str(number), choices=None, gold=None, completion="", text="")
        for number in range(9)
    ]
    drawn, others = draw_rows(rows, 4, seed=1)
    assert len(drawn) == 4
    assert sorted(row.id for row in (*drawn, *others)) == [row.id for row in rows]
    assert (drawn, others) == draw_rows(rows, 4, seed=1)


def test_no_searches_are_refused(tmp_path: Path, capsys) -> None:
    assert main([str(tmp_path), "--output", str(tmp_path / "out"), "--searches", "0"]) == 2
    assert "--searches" in capsys.readouterr().err
