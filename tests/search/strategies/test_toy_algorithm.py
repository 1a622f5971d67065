"""A search algorithm from another package, through the real command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from search.journal import read_journal
from search.opening import open_run
from shearling.registry.search_algorithms import SEARCH_ALGORITHMS
from shearling.run import Run
from tests.support.tiny_runs import tiny_recipe
from tests.support.toy_package import toy_package
from train.stage import run_recipe

TOY = '''
from shearling.registry.search_algorithms import SearchAlgorithm


class Shrinking:
    """From the largest sub-network downwards, a group at a time, until the evaluations are spent."""

    parent = None

    def __init__(self, grid, effort):
        self.planned = min(effort.evaluations, 1 + len(grid.sizes))
        self._next = [tuple(grid.minimal[:place]) + grid.maximal[place:] for place in range(self.planned)]

    def ask(self):
        asked, self._next = self._next[:1], self._next[1:]
        return asked

    def tell(self, trials):
        """Nothing follows from how they did."""


ENTRY = SearchAlgorithm(
    name="shrinking", summary="smaller a group at a time", implementation=Shrinking, tries_largest=True
)
'''


def test_an_algorithm_from_another_package_searches_through_the_command(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run_recipe(tiny_recipe(tmp_path), run.path)
    env = toy_package(tmp_path / "toy", group=SEARCH_ALGORITHMS.group, name="shrinking", code=TOY)

    def search(*options: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "search", *options]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=600)

    asked = ("--run", str(run.path), "--algorithm", "shrinking", "--evaluations", "3", "--limit", "6", "--json")
    without = {**env, "PYTHONPATH": str(Path.cwd())}
    refused = search(*asked, env=without)
    assert refused.returncode == 2
    assert "There are: heuristic, random, hill_climbing, nsga2" in json.loads(refused.stdout)["remedy"]
    assert "nsga2|shrinking]" in search("--help", env=env).stdout
    done = search(*asked, "--accuracy-delta", "1.0", env=env)
    assert done.returncode == 0, done.stderr
    minimal = tuple(len(group.values) - 1 for group in open_run(run).space.groups)
    records = read_journal(run.search / "journal.jsonl")
    expected = [minimal[:place] + (0,) * (len(minimal) - place) for place in range(3)]
    assert [record.choice_idx for record in records] == expected
    assert {record.algorithm for record in records} == {"shrinking"}
    # A run outlives the package that it was made with.
    picked = search(
        "pick", "--run", str(run.path), "--row", "1", "--output", str(tmp_path / "row.json"), "--json", env=without
    )
    assert json.loads(picked.stdout)["id"] == "shrinking-0001"
