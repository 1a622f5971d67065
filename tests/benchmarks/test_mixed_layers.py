"""The benchmark of layers that choose, on a tiny run that has been searched before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.mixed_layers import compare
from search.front import BestRule
from search.opening import open_run
from search.settings import recipe_settings
from search.stage import search
from shearling.errors import UsageError
from tests.support.mixed_runs import mixed_run


def test_a_search_of_the_run_is_neither_taken_nor_touched(tmp_path: Path) -> None:
    run = mixed_run(tmp_path / "mixed")
    search(run, recipe_settings(open_run(run).section), BestRule())
    before = (run.search / "best.json").read_bytes()
    options = {"budget": "0.6,int8", "ratios": "0.6,0.75", "evaluations": 3, "rows": 8}
    compare(run.path, tmp_path / "out.json", **options)
    figures = json.loads((tmp_path / "out.json").read_text())
    assert {"mixed", "0.6,int8"} <= figures["models"].keys()
    assert figures["models"]["mixed"]["model_bytes"] <= figures["budget"]
    assert (run.search / "best.json").read_bytes() == before
    # A finished search is not taken for another one.
    with pytest.raises(UsageError, match="another max_bytes"):
        compare(run.path, tmp_path / "out.json", **{**options, "budget": "0.6,int4"})
