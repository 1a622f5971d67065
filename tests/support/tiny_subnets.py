"""Sub-networks of tiny runs, described as the search would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shearling.artefact import open_artefact
from shearling.elastic.search_space import SEARCH_SPACE_FILE, read_search_space
from shearling.elastic.subnet import describe_subnet
from shearling.run import Run
from shearling.strict_json import write_document
from tests.support.tiny_runs import tiny_recipe
from train.stage import run_recipe


def run_with_best(directory: Path, **options: Any) -> Run:
    """A run of three steps with `best.json` in it: the heuristic sub-network but for one group."""
    run = Run(directory / "run")
    run_recipe(tiny_recipe(directory, **{"train": {"steps": 3}, **options}), run.path)
    adapter = open_artefact(run.super_adapter, kind="super_adapter")
    space = read_search_space(adapter.path / SEARCH_SPACE_FILE)
    choice = {**space.heuristic(), space.groups[0].id: space.groups[0].values[-1]}
    write_document(
        run.path / "best.json",
        describe_subnet(adapter, choice, subnet_id="test-0", location=run.path, metrics=None, provenance=None),
    )
    return run
