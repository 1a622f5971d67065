"""One sub-network trained further, alone: what moves, what does not, what becomes of it, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from export.plan import plan_subnet
from export.reporting.lineage import find_lineage
from export.reporting.report import ExportReport
from export.request import ExportRequest
from export.stage import export_subnet
from search.front import BestRule
from search.stage import search
from shearling.artefact import open_artefact
from shearling.elastic.reordering import REORDERING_FILE
from shearling.elastic.subnet import Subnet, describe_subnet, open_subnet
from shearling.elastic.super_network import ADAPTER_FILE, assemble_super_network, load_super_network
from shearling.errors import ArtefactMismatch, OutputExists, UsageError
from shearling.run import Run
from shearling.strict_json import read_document, write_document
from tests.support.exact_merges import merge_error
from tests.support.small_searches import SMALL_SEARCH
from tests.support.stage_commands import run_stage
from tests.support.tiny_runs import tiny_recipe
from train.stage import run_recipe
from train.super_adapter.artefact import LOG_FILE
from train.super_adapter.tune import tune_subnet

pytestmark = pytest.mark.slow

SETTINGS = replace(SMALL_SEARCH, evaluations=4, population=2)


@pytest.fixture(scope="module", params=[True, False], ids=["masked", "plain"])
def tuned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    """A search whose smallest sub-network is the cheapest, and that one tuned."""
    directory = tmp_path_factory.mktemp("tune")
    width = {"feed_forward": [100, 75, 50], "attention": [60, 30], "reorder": "l1"}
    recipe = tiny_recipe(
        directory,
        family="llama_tied_gqa",
        masked=request.param,
        sparse=request.param,
        width=width,
        task={"train_on_prompt": False},
        train={"steps": 3, "teacher": {"path": "source", "prompt": 0.1}},
    )
    run_recipe(recipe, directory / "run")
    run = Run(directory / "run")
    search(run, SETTINGS, BestRule(accuracy_delta=1.0))
    found = open_subnet(run.search / "best.json")
    return run, tune_subnet(found, steps=25, learning_rate=5e-3, teacher=directory / "source")


def describe_subnet_of(run: Run, document: Path) -> Path:
    """As `python -m search describe` writes it."""
    found = open_subnet(run.search / "best.json")
    described = describe_subnet(
        found.adapter,
        found.subnet.choice,
        subnet_id="small",
        location=document.parent,
        metrics=None,
        provenance=None,
    )
    write_document(document, described)
    return document


def test_only_the_sub_network_moves_and_it_learns(tuned: tuple[Run, Path]) -> None:
    run, document = tuned
    found = open_subnet(document)
    before, after = load_super_network(run), assemble_super_network(found.frozen, found.adapter, found.space)
    assert max(found.subnet.ranks.values()) < found.space.adapter.r_max
    for path, rank in found.subnet.ranks.items():
        old, new = before.layers[path], after.layers[path]
        # B A of the active ranks has changed, and what no active rank reads is as it was.
        assert not torch.equal(old.lora_b[:, :rank], new.lora_b[:, :rank])
        assert torch.equal(old.lora_a[rank:], new.lora_a[rank:])
        assert torch.equal(old.lora_b[:, rank:], new.lora_b[:, rank:])
    losses = [
        entry["loss"]
        for line in (found.adapter.path / LOG_FILE).read_text().splitlines()
        if "loss" in (entry := json.loads(line))
    ]
    assert losses[-1] < losses[0]


def test_the_document_says_what_it_is(tuned: tuple[Run, Path]) -> None:
    run, document = tuned
    old, new = (read_document(path, Subnet) for path in (run.search / "best.json", document))
    assert (document, new.id) == (run.path.resolve() / "tuned.json", f"{old.id}-tuned")
    assert new.metrics is None
    assert (new.choice, new.base.weights_sha256) == (old.choice, old.base.weights_sha256)
    found, origin = new.provenance, old.provenance
    assert found is not None
    assert origin is not None
    assert (found.row, found.best_rule) == (origin.row, origin.best_rule)
    assert (document.parent / found.results_file).samefile(run.search / origin.results_file)
    assert new.adapter.sha256 != old.adapter.sha256
    adapter = open_artefact(run.path / "tuned", kind="super_adapter")
    assert (adapter.path / REORDERING_FILE).read_bytes() == (run.super_adapter / REORDERING_FILE).read_bytes()
    assert adapter.manifest.details["recipe"]["train"]["steps"] == 25


def test_it_is_exported_like_any_other(tuned: tuple[Run, Path], tmp_path: Path) -> None:
    _, document = tuned
    found = open_subnet(document)
    exported = export_subnet(document, ExportRequest(output=tmp_path / "export", formats=("hf", "openvino")))
    report = read_document(exported.path / "report.json", ExportReport)
    assert report.parity[0].parity.max_abs <= 1e-5
    if found.subnet.sparsity is not None:
        assert merge_error(document, exported.path / "model") == 0.0
    assert all(check.zeros == check.pruned > 0 for check in report.zeros)


def test_what_is_there_is_not_replaced_unasked(tuned: tuple[Run, Path]) -> None:
    run, document = tuned
    found = open_subnet(run.search / "best.json")
    with pytest.raises(OutputExists):
        tune_subnet(found, steps=1, learning_rate=1e-3, teacher=run.path.parent / "source")
    before = document.read_bytes()
    rooms = ("super_adapter", "base", "sparse", "variants", "task", "search", "latency", "export")
    for name in (*rooms, "../tuned", ""):
        with pytest.raises(UsageError, match="cannot be the name of a tuned adapter"):
            tune_subnet(found, steps=1, learning_rate=1e-3, name=name, force=True)
    with pytest.raises(UsageError, match="learning rate"):
        tune_subnet(found, steps=1, learning_rate=0.0, name="other")
    other = run.path / "other.json"
    other.write_text("mine")
    with pytest.raises(OutputExists):
        tune_subnet(found, steps=1, learning_rate=1e-3, name="other", teacher=run.path.parent / "source")
    assert (other.read_text(), document.read_bytes()) == ("mine", before)


@pytest.mark.parametrize("force", [False, True])
def test_what_is_to_be_tuned_is_never_replaced(tuned: tuple[Run, Path], tmp_path: Path, force: bool) -> None:
    run, teacher = Run(tmp_path / "run"), tuned[0].path.parent / "source"
    shutil.copytree(tuned[0].path, run.path)
    small = describe_subnet_of(run, run.path / "small.json")
    adapter, document = (open_artefact(run.path / "tuned", kind="super_adapter").sha256, small.read_bytes())
    for source, name in ((run.path / "tuned.json", "tuned"), (small, "small")):
        with pytest.raises(OutputExists, match="what is to be tuned") as caught:
            tune_subnet(open_subnet(source), steps=1, learning_rate=1e-3, name=name, teacher=teacher, force=force)
        assert "--force" not in caught.value.remedy
    assert open_subnet(run.path / "tuned.json").adapter.sha256 == adapter
    assert small.read_bytes() == document


@pytest.mark.parametrize("force", [False, True])
def test_a_document_of_something_else_is_never_replaced(tuned: tuple[Run, Path], tmp_path: Path, force: bool) -> None:
    run, teacher = Run(tmp_path / "run"), tuned[0].path.parent / "source"
    shutil.copytree(tuned[0].path, run.path)
    found, small, other = open_subnet(run.search / "best.json"), run.path / "small.json", run.path / "other.json"
    describe_subnet_of(run, small)
    other.write_text('{"mine": true}')
    before = [path.read_bytes() for path in (small, other)]
    for path, match in ((small, "a sub-network of super_adapter, not of small"), (other, "it is no sub-network")):
        with pytest.raises(OutputExists, match=match) as caught:
            tune_subnet(found, steps=1, learning_rate=1e-3, name=path.stem, teacher=teacher, force=force)
        assert "--force" not in caught.value.remedy
    assert [path.read_bytes() for path in (small, other)] == before


def test_a_lost_document_is_written_again_without_training(tuned: tuple[Run, Path]) -> None:
    run, document = tuned
    before, adapter = read_document(document, Subnet), (run.path / "tuned" / ADAPTER_FILE).stat().st_mtime_ns
    document.unlink()
    found = open_subnet(run.search / "best.json")
    again = tune_subnet(found, steps=25, learning_rate=5e-3, teacher=run.path.parent / "source")
    assert read_document(again, Subnet).model_copy(update={"created": before.created}) == before
    assert (run.path / "tuned" / ADAPTER_FILE).stat().st_mtime_ns == adapter


def test_an_export_of_it_tells_how_it_came_about(tuned: tuple[Run, Path], tmp_path: Path) -> None:
    run, document = tuned
    request = ExportRequest(output=tmp_path / "export", formats=("hf",))
    found, before = (find_lineage(plan_subnet(path, request)) for path in (document, run.search / "best.json"))
    tuning = (
        "python -m train tune --subnet RUN/search/best.json --steps 25 --learning-rate 0.005 --name tuned "
        "--teacher source"
    )
    assert found.commands[:-1] == (*before.commands[:-1], tuning)
    assert "--subnet RUN/tuned.json" in found.commands[-1]
    # The recipe is that of the first training.
    assert found.recipe is not None
    assert before.recipe is not None
    assert found.recipe["train"] == before.recipe["train"]
    assert found.recipe["train"]["steps"] == 3


def test_another_task_and_another_kind_of_artefact_are_refused(tuned: tuple[Run, Path], tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    shutil.copytree(tuned[0].path, run.path)
    shutil.copytree(run.search, run.path / "kept")
    found, teacher = open_subnet(run.search / "best.json"), tuned[0].path.parent / "source"
    with pytest.raises(ArtefactMismatch, match="expected super_adapter"):
        tune_subnet(found, steps=1, learning_rate=1e-3, name="kept", force=True, teacher=teacher)
    assert (run.path / "kept" / "best.json").is_file()
    manifest = run.task / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"created"', ' "created"'))
    with pytest.raises(ArtefactMismatch, match="not the one that the adapter was trained on"):
        tune_subnet(open_subnet(run.search / "best.json"), steps=1, learning_rate=1e-3, name="again")


def test_the_command_replaces_only_by_force(tuned: tuple[Run, Path], tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    shutil.copytree(tuned[0].path, run.path)
    teacher = tuned[0].path.parent / "source"
    command = ("train", "tune", "--subnet", run.search / "best.json", "--steps", "2", "--teacher", teacher, "--json")
    run_stage(*command, code=OutputExists.exit_code)
    done = run_stage(*command, "--force", code=0)
    assert json.loads(done.stdout)["output"] == str(run.path / "tuned.json")
    assert open_subnet(run.path / "tuned.json").adapter.manifest.details["recipe"]["train"]["steps"] == 2
