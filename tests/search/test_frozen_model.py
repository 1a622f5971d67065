"""The frozen model beside what a search chose, where the run has one that knows the task."""

from __future__ import annotations

import dataclasses
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from search.front import BestRule
from search.frozen_model import FrozenModel, stands_alone
from search.journal import Journal, read_journal
from search.opening import open_inputs, open_run
from search.row_split import RowSplit
from search.screen import summarise
from search.stage import Searched, search
from shearling.artefact import open_artefact
from shearling.evaluation.evaluator import Evaluator, torch_scorer
from shearling.executors.executor import Workforce
from shearling.model.checkpoint import load_model, load_tokenizer
from shearling.run import Run
from tests.support.simulated_search import SimulatedRows, simulate
from tests.support.small_searches import SMALL_SEARCH
from tests.support.tiny_runs import tiny_network, tiny_recipe

ADAPTATION = {"steps": 20}
SETTINGS = dataclasses.replace(SMALL_SEARCH, limit=None)


def trained(directory: Path, **options: object) -> Run:
    from train.stage import run_recipe

    run_recipe(tiny_recipe(directory, **{"adaptation": ADAPTATION, **options}), directory / "run")
    return Run(directory / "run")


def opens_alone(run: Run, *, task: str | None = None) -> bool:
    return stands_alone(open_inputs(open_run(run), task=task))


@pytest.fixture(scope="module", params=[True, False], ids=["masked", "plain"])
def adapted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(tmp_path_factory.mktemp("adapted"), masked=request.param)


def test_the_frozen_model_is_measured_as_it_would_be_exported(adapted: Run, tmp_path: Path) -> None:
    run = Run(shutil.copytree(adapted.path, tmp_path / "run"))
    found = search(run, SETTINGS, BestRule())
    evaluator = Evaluator("headlines", split="validation", include_path=run.task)
    split = RowSplit.of(evaluator.row_digests, limit=None)
    scorer = torch_scorer(load_model(run.sparse), load_tokenizer(run.sparse), batch_size=SETTINGS.batch_size)
    alone = evaluator.measure(scorer, split.places_of(split.held_back))
    assert found.frozen is not None
    assert (found.frozen.path, found.frozen.n) == (run.sparse, len(split.held_back))
    assert (found.frozen.accuracy, found.frozen.interval) == (alone.accuracy, alone.interval)
    best = next(record for record in found.records if record.part == "held_back")
    assert best.answers is not None
    assert best.choice_idx == found.best.choice_idx
    differences = np.subtract(best.answers, alone.answers)
    assert found.frozen.best_gains == pytest.approx(differences.mean())
    assert found.frozen.gain_interval[0] <= differences.mean() <= found.frozen.gain_interval[1]
    assert open_artefact(run.search, kind="search").manifest.details["frozen"] == found.frozen.document()
    assert all(record.choice_idx for record in read_journal(run.search / "journal.jsonl")), "no candidate"


def test_workers_measure_the_same(adapted: Run, tmp_path: Path) -> None:
    runs = [Run(shutil.copytree(adapted.path, tmp_path / name / "run")) for name in ("one", "two")]
    one = search(runs[0], SETTINGS, BestRule()).frozen
    two = search(runs[1], SETTINGS, BestRule(), workforce=Workforce("processes", 2, 1)).frozen
    assert one is not None
    assert two is not None
    assert dataclasses.replace(two, path=one.path) == one


def test_it_is_no_alternative_where_it_has_not_learnt_the_task(adapted: Run, tmp_path: Path) -> None:
    assert opens_alone(adapted)
    assert not opens_alone(adapted, task="arc_easy"), "another task than that of the run"
    assert not opens_alone(trained(tmp_path / "untaught", adaptation=None, sparsity={"healing": {"steps": 1}}))
    dense = trained(tmp_path / "dense", sparse=False, masked=False)
    assert opens_alone(dense)
    grid = trained(tmp_path / "grid", quantization={"bits": 8})
    assert not opens_alone(grid), "an export of it has other numbers"


@pytest.mark.parametrize("masked", [True, False])
def test_adapters_are_left_out_and_come_back(masked: bool) -> None:
    network = tiny_network(masked=masked)
    tokens = torch.arange(8)[None]
    with torch.inference_mode():
        whole = network.model(tokens).logits
        with network.without_adapters():
            frozen = network.model(tokens).logits
        again = network.model(tokens).logits
        for layer in network.layers.values():
            layer.lora_b.zero_()
        zeroed = network.model(tokens).logits
    assert torch.equal(whole, again)
    assert not torch.equal(whole, frozen)
    assert torch.equal(frozen, zeroed)


@pytest.mark.parametrize(
    ("gain", "interval", "verdict"),
    [
        (0.03, (0.01, 0.05), None),
        (0.01, (-0.02, 0.04), "chance may explain that"),
        (-0.03, (-0.05, -0.01), "it does harm"),
    ],
)
def test_the_screen_leads_to_it_where_the_adapter_is_worth_nothing(
    gain: float, interval: tuple[float, float], verdict: str | None, tmp_path: Path
) -> None:
    rows = SimulatedRows((0.9, 0.8, 0.8), np.random.default_rng(0), rows=400)
    journal = Journal(tmp_path / "journal.jsonl")
    best = simulate(rows, BestRule(), journal).best
    frozen = FrozenModel(Path("runs/demo/sparse"), 133, 0.87, (0.8, 0.92), gain, interval)
    result = summarise(
        Searched(Path("runs/demo/search"), journal.records, best, (1,), "headlines_validation", "", frozen=frozen)
    )
    stream = io.StringIO()
    Console(file=stream, width=80).print(result.screen)
    text = stream.getvalue()
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "87.0% (80.0-92.0)" in text
    assert f"the adapter brings {100 * gain:+.1f} (" in text
    told = " ".join(text.split())
    command = "python -m export --base runs/demo/sparse"
    assert (f"{verdict}; without it: {command}" in told) if verdict else (command not in told)
    assert result.data["frozen"] == frozen.document()
