"""The benchmark of search algorithms, on a tiny run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.search_algorithms import beside, main
from shearling.artefact import open_artefact
from shearling.errors import UsageError
from shearling.run import Run
from tests.support.tiny_runs import tiny_recipe
from train.stage import run_recipe


def test_algorithms_stand_side_by_side_and_what_is_there_stays(tmp_path: Path, capsys) -> None:
    run = Run(tmp_path / "tiny")
    run_recipe(tiny_recipe(tmp_path), run.path)
    arguments = [str(run.path), "--output", str(tmp_path / "out"), "--algorithms", "random,heuristic"]
    arguments += [
        "--seeds",
        "0,1",
        "--evaluations",
        "4",
        "--population",
        "2",
        "--rows",
        "8",
        "--cost",
        "adapter_params",
    ]
    assert main(arguments) == 0
    first = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[1] for line in first[2:]] == ["random", "heuristic"]
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert [(item["algorithm"], item["seed"]) for item in figures] == [
        ("random", 0),
        ("random", 1),
        ("heuristic", 0),
        ("heuristic", 1),
    ]
    assert figures[2] == {**figures[3], "seed": 0}  # the middle is the same, whatever the seed
    assert all(0 < item["hypervolume"] <= 1 and 0 <= item["unseen"] <= 1 for item in figures)
    # Of the largest one, which the search for the middle alone has not measured.
    assert 0 < figures[2]["cost"] < 1
    assert not run.search.exists()
    searched = Run(tmp_path / "out" / "tiny" / "random-0")
    digest = open_artefact(searched.search, kind="search").sha256
    assert main(arguments) == 0
    assert capsys.readouterr().out.splitlines() == first
    assert open_artefact(searched.search, kind="search").sha256 == digest
    assert main([*arguments[:-1], "adapter_params", "--evaluations", "5"]) == UsageError.exit_code
    assert "another evaluations" in capsys.readouterr().err.replace("\n", " ")


def test_two_runs_of_one_name_are_not_taken_for_one(tmp_path: Path) -> None:
    one, other = (Run(tmp_path / seed / "run") for seed in ("seed0", "seed1"))
    for run in (one, other):
        run.super_adapter.mkdir(parents=True)
    place = tmp_path / "searches" / "run"
    assert beside(one, place).super_adapter.resolve() == one.super_adapter
    beside(one, place)
    with pytest.raises(UsageError, match=r"holds searches of .*seed0/run.*Give another --output"):
        beside(other, place)
