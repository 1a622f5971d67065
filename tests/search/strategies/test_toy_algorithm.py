"""Search algorithms from another package: one through the real command, and broken ones, which are named."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from search.exploration import explore
from search.journal import Journal, read_journal
from search.opening import open_run
from search.strategies.grid import Grid, Indices
from search.strategies.strategy import Effort, Trial, make_strategy
from shearling.errors import ShearlingError
from shearling.registry.search_algorithms import SEARCH_ALGORITHMS, SearchAlgorithm
from shearling.run import Run
from tests.support.stage_commands import run_stage
from tests.support.synthetic_search import SIZES, Separable, run, silent
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


ENTRY = SearchAlgorithm(name="shrinking", summary="smaller a group at a time", implementation=Shrinking)
'''


def test_an_algorithm_from_another_package_searches_through_the_command(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run_recipe(tiny_recipe(tmp_path), run.path)
    env = toy_package(tmp_path / "toy", group=SEARCH_ALGORITHMS.group, name="shrinking", code=TOY)

    def search(*options: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        return run_stage("search", *options, environment=env)

    asked = ("--run", str(run.path), "--algorithm", "shrinking", "--evaluations", "3", "--limit", "6", "--json")
    without = {**env, "PYTHONPATH": str(Path.cwd())}
    refused = search(*asked, env=without)
    assert refused.returncode == 2
    assert "There are: heuristic, random, hill_climbing, nsga2" in json.loads(refused.stdout)["remedy"]
    assert "|shrinking]" in search("--help", env=env).stdout
    done = search(*asked, "--cost", "adapter_params", "--accuracy-delta", "1.0", env=env)
    assert done.returncode == 0, done.stderr
    minimal = tuple(len(group.values) - 1 for group in open_run(run).space.groups)
    records = read_journal(run.search / "journal.jsonl")
    expected = [minimal[:place] + (0,) * (len(minimal) - place) for place in range(3)]
    explored = [record for record in records if record.part == "explored"]
    anchors, asked_for = explored[:3], explored[3:]
    assert [record.choice_idx for record in asked_for] == expected
    # It knows nothing of them, and its search has them all the same.
    space = open_run(run).space
    assert [record.choice_idx for record in anchors] == [
        space.encode(space.maximal()),
        space.encode(space.heuristic()),
        minimal,
    ]
    assert {record.algorithm for record in records} == {"shrinking"}
    # A run outlives the package that it was made with.
    picked = search(
        "pick", "--run", str(run.path), "--row", "1", "--output", str(tmp_path / "row.json"), "--json", env=without
    )
    assert json.loads(picked.stdout)["id"] == "shrinking-0001"


class Scripted:
    """Asks for what it was given, one generation after another."""

    def __init__(self, *generations: object, planned: int = 3, parent: object = None) -> None:
        self.planned = planned
        self.parent = parent
        self.told: list[int] = []
        self._generations = iter(generations)

    def ask(self) -> object:
        return next(self._generations, [])

    def tell(self, trials: Sequence[Trial]) -> None:
        self.told.append(len(trials))


class Forever:
    """The same candidate, without an end."""

    parent: Indices | None = None

    def __init__(self, grid: Grid, effort: Effort) -> None:
        self.planned = effort.evaluations
        self._grid = grid

    def ask(self) -> Sequence[Indices]:
        return [self._grid.maximal]

    def tell(self, trials: Sequence[Trial]) -> None:
        """Nothing follows from the trials."""


def add_algorithm(monkeypatch: pytest.MonkeyPatch, implementation: object) -> None:
    SEARCH_ALGORITHMS.names()
    entry = SearchAlgorithm(name="toy", summary="a toy", implementation=implementation)
    monkeypatch.setitem(SEARCH_ALGORITHMS._entries, "toy", entry)


def refused(strategy: Scripted, journal: Path, objective: Separable) -> str:
    with pytest.raises(ShearlingError) as caught:
        explore(
            strategy, objective.measure_all, Journal(journal), grid=Grid(SIZES), algorithm="toy", seed=0, advance=silent
        )
    # Neither the request nor a file of the user's is at fault.
    assert (type(caught.value), caught.value.exit_code, caught.value.where) == (ShearlingError, 5, None)
    assert "a defect of the algorithm" in str(caught.value)
    return caught.value.message


def test_an_algorithm_that_never_ends_is_stopped_at_what_it_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_algorithm(monkeypatch, Forever)
    objective = Separable()
    with pytest.raises(ShearlingError, match="algorithm toy planned 7 evaluations, repeats counted, and asked for 8"):
        run(tmp_path / "j", objective, "toy", evaluations=7)
    assert objective.measured == [(0, 0, 0, 0)]
    assert [record.cached for record in read_journal(tmp_path / "j")] == [False] + 6 * [True]


def test_a_generation_that_overruns_is_not_begun(tmp_path: Path) -> None:
    objective, first = Separable(), [(0, 0, 0, 0), (1, 0, 0, 0)]
    strategy = Scripted(first, [(2, 0, 0, 0), (2, 1, 0, 0)], planned=3)
    assert "planned 3 evaluations, repeats counted, and asked for 4" in refused(strategy, tmp_path / "j", objective)
    assert objective.measured == first


def test_an_algorithm_that_plans_more_than_it_may_spend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    add_algorithm(monkeypatch, lambda grid, effort: Scripted(planned=10))
    with pytest.raises(ShearlingError, match="algorithm toy plans 10 evaluations, 9 are allowed"):
        make_strategy("toy", Grid(SIZES), Effort(9))
    assert make_strategy("toy", Grid(SIZES), Effort(10)).planned == 10


@pytest.mark.parametrize(
    "candidate",
    [(9, 9, 0, 0), (0, 0, 0, 3), (-1, 0, 0, 0), (0, 0), (0, 0, 0, 0, 0), [0, 0, 0, 0], (0.0, 0, 0, 0), (True, 0, 0, 0)],
    ids=str,
)
def test_what_is_no_candidate_is_refused_by_the_name_of_the_algorithm(candidate: object, tmp_path: Path) -> None:
    objective = Separable()
    message = refused(Scripted([(0, 0, 0, 0), candidate]), tmp_path / "j", objective)
    assert message.startswith(f"the search algorithm toy asked for {candidate}, which the search space does not hold")
    assert not objective.measured


def test_what_is_no_list_of_candidates_is_refused(tmp_path: Path) -> None:
    assert "asked with a generator, expected a list" in refused(
        Scripted(indices for indices in [(0, 0, 0, 0)]), tmp_path / "j", Separable()
    )
    assert "asked for 0, which" in refused(Scripted((0, 0, 0, 0)), tmp_path / "k", Separable())


@pytest.mark.parametrize("parent", [(2, 2, 2, 2), (0, 0, 0, 0), [0, 0, 0, 0]], ids=str)
def test_a_parent_that_was_not_asked_for_before_is_refused(parent: object, tmp_path: Path) -> None:
    message = refused(Scripted([(0, 0, 0, 0)], parent=parent), tmp_path / "j", Separable())
    assert message == f"the search algorithm toy derived candidates from {parent}, which it has not asked for before"


def test_an_empty_ask_ends_the_search_and_is_not_told(tmp_path: Path) -> None:
    strategy = Scripted([(0, 0, 0, 0)], [(1, 0, 0, 0), (2, 0, 0, 0)], [], [(0, 0, 0, 0)])
    journal = Journal(tmp_path / "j")
    explore(strategy, Separable().measure_all, journal, grid=Grid(SIZES), algorithm="toy", seed=0, advance=silent)
    assert strategy.told == [1, 2]
