"""The search command on a real, tiny run: real super-network, real harness, real processes."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import shearling.artefact
from search.costing import count_frozen_nonzero
from search.estimates import MemoryPlan, plan_memory
from search.front import BestRule, best_record
from search.journal import read_journal
from search.objective import SubnetObjective
from search.opening import SearchInputs, open_inputs, open_run, searched_files
from search.pick import describe_row
from search.pieces import Piece
from search.row_split import RowSplit
from search.settings import SearchSettings, recipe_settings
from search.stage import Searched, search, search_by_recipe
from shearling.artefact import MANIFEST, list_files, open_artefact, sha256_file
from shearling.elastic.search_space import GridSpec
from shearling.elastic.subnet import open_subnet
from shearling.elastic.super_network import load_super_network
from shearling.errors import ArtefactMismatch, DocumentInvalid, NoCandidate, OutputExists, ResourceExhausted, UsageError
from shearling.evaluation.evaluator import Evaluator, torch_scorer
from shearling.executors.executor import Workforce
from shearling.run import Run
from shearling.strict_json import read_json
from tests.support.stage_commands import run_stage
from tests.support.tiny_runs import tiny_recipe

NOTHING_MEETS = BestRule(min_accuracy=1.5)
"""Leaves an unfinished search with all its evaluations."""

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    from train.stage import run_recipe

    directory = tmp_path_factory.mktemp("trained")
    run_recipe(tiny_recipe(directory), directory / "run")
    return directory / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Run:
    return Run(shutil.copytree(trained, tmp_path / "run"))


def settings(**changes: object) -> SearchSettings:
    sizes = {"evaluations": 12, "population": 4, "limit": None, "batch_size": 8}
    defaults = {"algorithm": "nsga2", "seed": 0, "task": None, "precision": "fp32", **sizes}
    return SearchSettings(**{**defaults, **changes})


def arguments(run: Run, *options: str) -> list[str]:
    fixed = ["--run", str(run.path), "--evaluations", "12", "--population", "4", "--precision", "fp32"]
    return [*fixed, *options]


def content(path: Path) -> list[dict[str, object]]:
    return [
        {name: value for name, value in json.loads(line).items() if name != "seconds"}
        for line in path.read_text().splitlines()
    ]


def split_rows(run: Run) -> RowSplit:
    return RowSplit.of(Evaluator("headlines", split="validation", include_path=run.task).row_digests, limit=None)


def choosing_rows(run: Run) -> int:
    return split_rows(run).choosing


def test_a_search_writes_a_complete_artefact(run: Run) -> None:
    found = search(run, settings(), BestRule())
    artefact = open_artefact(run.search, kind="search")
    assert set(artefact.manifest.files) == {
        "journal.jsonl",
        "progression.csv",
        "pareto.json",
        "pareto.png",
        "pareto.svg",
        "best.json",
        "search.html",
    }
    assert set(artefact.manifest.parents) == {"super_adapter", "sparse", "task"}
    records = read_journal(run.search / "journal.jsonl")
    assert records == found.records
    assert (found.best, found.best.n_eval) == (best_record([found.best]), choosing_rows(run))
    with (run.search / "progression.csv").open(newline="") as stream:
        assert [int(row["i"]) for row in csv.DictReader(stream)] == [record.i for record in found.explored]
    points = read_json(run.search / "pareto.json")["points"]
    assert {point["row"] for point in points} <= {record.i for record in found.explored}
    assert {record.n_eval for record in found.explored} == {split_rows(run).parts[0]}


def test_best_json_names_everything_and_reevaluates_to_the_recorded_accuracy(run: Run) -> None:
    found = search(run, settings(), BestRule())
    opened = open_subnet(run.search / "best.json")
    subnet = opened.subnet
    assert subnet.metrics is not None
    assert subnet.provenance is not None
    assert (subnet.provenance.row, subnet.provenance.best_rule) == (found.best.i, BestRule().words("adapter_params"))
    assert (subnet.metrics.split, subnet.metrics.task, subnet.metrics.accuracy) == (
        "validation",
        "headlines_validation",
        found.best.accuracy,
    )
    network = load_super_network(run)
    network.activate(subnet.choice)
    evaluator = Evaluator("headlines", split="validation", include_path=run.task)
    scorer, split = torch_scorer(network.model, network.tokenizer, batch_size=8), split_rows(run)
    again = evaluator.measure(scorer, split.places_of(range(split.choosing)))
    assert again.accuracy == found.best.accuracy
    assert again.answers == found.best.answers
    assert split.sha256(range(split.choosing)) == found.best.eval_split_sha256
    unseen, held_back = evaluator.measure(scorer, split.places_of(split.held_back)), subnet.metrics.held_back
    assert held_back is not None
    assert (held_back.n, held_back.accuracy, held_back.interval) == (unseen.n, unseen.accuracy, unseen.interval)
    assert subnet.metrics.adapter_params == network.adapter_params(subnet.choice)
    assert subnet.metrics.nonzero_params == count_frozen_nonzero(network)


def test_a_cost_share_is_kept_by_the_candidates_and_by_the_best(run: Run) -> None:
    found = search(run, settings(max_cost_share=0.7), BestRule())
    network = load_super_network(run)
    largest = network.adapter_params(network.space.decode((0,) * len(network.space.groups)))
    assert found.best.adapter_params <= 0.7 * largest
    assert {record.adapter_params for record in found.records if record.adapter_params > 0.7 * largest} == {largest}
    subnet = open_subnet(run.search / "best.json").subnet
    assert subnet.provenance is not None
    assert f"max accuracy with adapter params <= {0.7 * largest:g}" in subnet.provenance.best_rule
    with pytest.raises(NoCandidate, match="the cheapest sub-network costs"):
        search(run, settings(max_cost_share=0.01), BestRule(), force=True)
    assert (run.search / "best.json").is_file(), "the search that stood there is intact"


def test_one_sub_network_is_compared_with_the_largest_only_where_the_rule_asks(run: Run) -> None:
    found = search(run, settings(algorithm="heuristic"), BestRule(accuracy_delta=1.0))
    largest = (0,) * len(found.best.choice_idx)
    assert {record.choice_idx for record in found.records} == {largest, found.middle}
    assert found.best.choice_idx == found.middle
    metrics = open_subnet(run.search / "best.json").subnet.metrics
    assert metrics is not None
    assert metrics.versus_largest is not None
    assert metrics.held_back is not None
    assert metrics.held_back.versus_largest is not None
    assert (metrics.versus_largest.n, metrics.held_back.versus_largest.n) == (metrics.n, metrics.held_back.n)


def test_heuristic_search_takes_the_middle_of_every_group(run: Run) -> None:
    found = search(run, settings(algorithm="heuristic"), BestRule())
    opened = open_subnet(run.search / "best.json")
    assert opened.subnet.choice == opened.space.heuristic()
    assert {record.choice_idx for record in found.records} == {found.middle}
    assert len(found.explored) == 1


def test_the_search_never_reads_the_test_rows(run: Run, trained: Path, tmp_path: Path) -> None:
    whole = search(Run(shutil.copytree(trained, tmp_path / "whole")), settings(), BestRule())
    unread = run.task / "test.jsonl", run.task / "test.parquet"
    for file in unread:
        file.write_text("neither")
    damaged = search(run, settings(), BestRule())
    assert [record.model_copy(update={"seconds": 0.0}) for record in damaged.records] == [
        record.model_copy(update={"seconds": 0.0}) for record in whole.records
    ]
    shutil.rmtree(run.search)
    for file in unread:
        file.unlink()
    search(run, settings(algorithm="heuristic"), BestRule())


def test_a_search_verifies_the_table_of_a_task_that_has_one(run: Run) -> None:
    task = open_artefact(run.task, kind="task")
    files = {"task.json", "validation.jsonl", "validation.parquet"}
    files |= {"headlines_validation.yaml", "headlines_validation_text.yaml"}
    assert set(searched_files(task)) == files
    older = {name: entry for name, entry in task.manifest.files.items() if not name.endswith(".parquet")}
    task = replace(task, manifest=task.manifest.model_copy(update={"files": older}))
    assert set(searched_files(task)) == files - {"validation.parquet"}


def test_train_validation_and_test_rows_are_disjoint(trained: Path) -> None:
    from shearling.evaluation.task import SPLITS, read_rows

    prompts = {split: {row.prompt for row in read_rows(trained / "task", split)} for split in SPLITS}
    assert all(prompts.values())
    assert (
        not prompts["train"] & prompts["validation"]
        | prompts["validation"] & prompts["test"]
        | prompts["train"] & prompts["test"]
    )


@pytest.mark.slow
def test_kill_9_and_resume_ends_as_an_uninterrupted_search(run: Run, trained: Path, tmp_path: Path) -> None:
    whole = Run(shutil.copytree(trained, tmp_path / "whole"))
    run_stage("search", *arguments(whole), code=0)
    partial = run.search.with_name(".search.partial") / "journal.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "search", *arguments(run)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline_s = time.monotonic() + 120
    while (not partial.is_file() or partial.read_bytes().count(b"\n") < 3) and process.poll() is None:
        assert time.monotonic() < deadline_s
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it finished before it could be killed"
    assert not run.search.exists()
    # As if the kill had struck in the middle of a write.
    kept = partial.read_bytes()
    partial.write_bytes(kept[: kept.rfind(b"\n") + 1] + b'{"i":')
    done = kept.count(b"\n")
    resumed = run_stage("search", *arguments(run))
    assert resumed.returncode == 0, resumed.stderr
    assert f"continuing after {done} evaluations" in resumed.stderr
    assert (run.search / "journal.jsonl").read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])
    assert content(run.search / "journal.jsonl") == content(whole.search / "journal.jsonl")
    assert (run.search / "pareto.json").read_bytes() == (whole.search / "pareto.json").read_bytes()
    assert not partial.parent.exists()


def test_interrupted_in_process_and_resumed_measures_nothing_twice(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []
    original = SubnetObjective.measure

    def stop_at_five(self: SubnetObjective, piece: Piece):
        if len(measured) == 5:
            raise KeyboardInterrupt
        return count(self, piece)

    def count(self: SubnetObjective, piece: Piece):
        measured.append(piece)
        return original(self, piece)

    monkeypatch.setattr(SubnetObjective, "measure", stop_at_five)
    with pytest.raises(KeyboardInterrupt):
        search(run, settings(), BestRule())
    monkeypatch.setattr(SubnetObjective, "measure", count)
    with monkeypatch.context() as full:
        full.setattr(shearling.artefact, "sha256_file", disk_is_full)
        with pytest.raises(ResourceExhausted):
            search(run, settings(), BestRule())
    found = search(run, settings(), BestRule())
    assert len(measured) == len(set(measured)) == sum(not record.cached for record in found.records)
    assert not {"settings.json", "pieces.jsonl"} & {path.name for path in run.search.iterdir()}


def test_fewer_evaluations_than_an_unfinished_search_made_take_what_it_measured(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NoCandidate):
        search(run, settings(), NOTHING_MEETS)
    original, explored = SubnetObjective.measure, split_rows(run).parts[0]

    def raced_only(self: SubnetObjective, piece: Piece):
        assert piece.start >= explored, "measured again"
        return original(self, piece)

    monkeypatch.setattr(SubnetObjective, "measure", raced_only)
    found = search(run, settings(evaluations=4), BestRule())
    assert len(found.explored) == 7
    assert (run.search / "journal-1.jsonl").is_file()


def disk_is_full(path: Path) -> str:
    if ".search.partial" in path.parts:
        raise OSError(28, "No space left on device", str(path))
    return sha256_file(path)


def test_no_candidate_is_exit_1_and_another_constraint_reuses_the_evaluations(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NoCandidate, match=r"the smallest sub-network has \d+ adapter parameters, more than 1"):
        search(run, settings(), BestRule(max_params=1))
    assert not (run.search.with_name(".search.partial") / "journal.jsonl").exists(), "nothing was evaluated"
    with pytest.raises(NoCandidate, match=r"accuracy >= 1\.5"):
        search(run, settings(), NOTHING_MEETS)
    assert not run.search.exists()
    original = SubnetObjective.measure
    asked = [record.n_eval for record in read_journal(run.search.with_name(".search.partial") / "journal.jsonl")]

    def raced_only(self: SubnetObjective, piece: Piece):
        assert piece.start >= min(asked), "measured again"
        return original(self, piece)

    monkeypatch.setattr(SubnetObjective, "measure", raced_only)
    found = search(run, settings(), BestRule(max_params=10**9))
    # What is always tried comes first; the algorithm asks for it again, and has it for nothing.
    assert (len(found.explored), sum(record.cached for record in found.explored)) == (15, 3)
    refused = run_stage(
        "search",
        *arguments(run, "--force", "--algorithm", "heuristic", "--min-accuracy", "1.0", "--max-params", "1", "--json"),
    )
    assert refused.returncode == 1
    assert json.loads(refused.stdout)["error"] == "NoCandidate"
    assert open_subnet(run.search / "best.json").subnet.provenance.algorithm == "nsga2", (
        "the search that stood there is intact"
    )


def test_other_settings_start_over(run: Run) -> None:
    with pytest.raises(NoCandidate):
        search(run, settings(), NOTHING_MEETS)
    found = search(run, settings(algorithm="random", seed=5, evaluations=3), BestRule())
    assert {record.algorithm for record in found.records} == {"random"}
    assert len(found.explored) == 6


@pytest.mark.parametrize("name", ["journal.jsonl", "pieces.jsonl"])
def test_a_damaged_line_is_left_behind_with_start_over(run: Run, name: str) -> None:
    with pytest.raises(NoCandidate):
        search(run, settings(), NOTHING_MEETS)
    unfinished = run.path / ".search.partial"
    lines = (unfinished / name).read_bytes().splitlines(keepends=True)
    (unfinished / name).write_bytes(b"".join([lines[0], b'{"i": \n', *lines[2:]]))
    with pytest.raises(DocumentInvalid, match=rf"{name}, line 2.*--start-over"):
        search(run, settings(), BestRule())
    assert search(run, settings(), BestRule(), consent=lambda _: True).best
    assert (run.search / "journal-1.jsonl").is_file()


def test_any_row_becomes_a_document_that_opens(run: Run, tmp_path: Path) -> None:
    found = search(run, settings(), BestRule())

    def pick(row: int, output: Path) -> subprocess.CompletedProcess[str]:
        options = ["--run", str(run.path), "--row", str(row), "--output", str(output), "--json"]
        return run_stage("search", "pick", *options)

    held_back = next(record for record in found.records if record.part == "held_back")
    same = next(record.i for record in found.records if record.choice_idx == held_back.choice_idx)
    with pytest.raises(UsageError, match=f"what row {same} reaches on the rows that are held back") as caught:
        describe_row(run, held_back.i, location=tmp_path)
    assert f"Pick row {same}:" in str(caught.value)
    for row in (0, len(found.explored) - 1, held_back.i - 1):
        output = tmp_path / "elsewhere" / f"row-{row}.json"
        done = pick(row, output)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["id"] == found.records[row].id
        opened = open_subnet(output)
        assert opened.space.encode(opened.subnet.choice) == found.records[row].choice_idx
    again = pick(0, output)
    assert (again.returncode, json.loads(again.stdout)["error"]) == (2, "OutputExists")
    with pytest.raises(UsageError, match="row 99 of"):
        describe_row(run, 99, location=tmp_path)


@pytest.mark.parametrize("command", ["pick", "describe"])
def test_a_document_spoils_no_artefact(run: Run, tmp_path: Path, command: str) -> None:
    if command == "pick":
        search(run, settings(algorithm="heuristic"), BestRule())
    options = ("--row", "0") if command == "pick" else ()
    artefact = run.search if command == "pick" else run.super_adapter
    (tmp_path / "link").symlink_to(artefact)
    (tmp_path / "file").touch()
    # Of another program.
    (tmp_path / MANIFEST).write_text('{"name": "a web page"}')
    os.mkfifo(tmp_path / "pipe")
    refused = {
        artefact / "full.json": "lies in an artefact",
        artefact / "deeper" / "full.json": "lies in an artefact",
        artefact / MANIFEST: "lies in an artefact",
        tmp_path / "link" / "full.json": "lies in an artefact",
        tmp_path: "no file can be written here",
        tmp_path / "pipe": "no file can be written here",
        tmp_path / "file" / "full.json": "no directory can be made here",
    }
    before = list_files(artefact)
    for output, words in refused.items():
        done = run_stage(
            "search", command, "--run", str(run.path), *options, "--output", str(output), "--force", code=2
        )
        assert words in done.stderr
    run_stage("search", command, "--run", str(run.path), *options, "--output", str(tmp_path / "a.json"), code=0)
    assert list_files(artefact) == before
    open_artefact(artefact, kind="search" if command == "pick" else "super_adapter")


def test_picked_for_the_same_row_equals_best(run: Run) -> None:
    found = search(run, settings(), BestRule())
    written = read_json(run.search / "best.json")
    again = describe_row(run, found.best.i, location=run.search).model_dump(mode="json", by_alias=True)
    assert {**written, "created": None} == {**again, "created": None}


def test_an_existing_search_is_kept_unless_forced(run: Run) -> None:
    search(run, settings(algorithm="heuristic"), BestRule())
    with pytest.raises(OutputExists):
        search(run, settings(algorithm="heuristic"), BestRule())
    search(run, settings(algorithm="random", evaluations=2), BestRule(), force=True)
    assert {record.algorithm for record in read_journal(run.search / "journal.jsonl")} == {"random"}


def test_a_search_refuses_a_base_that_was_swapped(run: Run, tmp_path: Path) -> None:
    from train.stage import run_recipe

    other = tmp_path / "other"
    run_recipe(tiny_recipe(other, sparsity={"ratio": 0.25}), other / "run")
    shutil.rmtree(run.sparse)
    shutil.copytree(other / "run" / "sparse", run.sparse)
    with pytest.raises(ArtefactMismatch, match="not the one that the adapter was trained on"):
        search(run, settings(), BestRule())


def test_defaults_come_from_the_recipe_and_the_command_line_overrides(run: Run) -> None:
    defaults = recipe_settings(open_run(run).section)
    assert (defaults.algorithm, defaults.evaluations, defaults.population) == ("nsga2", 32, 8)
    done = run_stage("search", *arguments(run, "--algorithm", "random", "--evaluations", "3", "--limit", "5", "--json"))
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert (data["status"], data["n_eval"]) == ("ok", 5)
    # Three draws, and those that are always tried.
    assert 3 <= data["evaluations"] <= 6
    assert Path(data["best"]["path"]).is_file()
    assert data["best"]["held_back"]["n"] == min(5, len(split_rows(run).held_back))
    assert set(", ".join(data["compared"]).split(", ")) == {"largest", "middle", "best"}


def test_a_preference_takes_the_place_of_the_recipes_delta(run: Run) -> None:
    file = run.super_adapter / MANIFEST
    manifest = json.loads(file.read_text())
    manifest["details"]["search"] |= {"accuracy_delta": 1.0, "reference_accuracy": 0.5, "cost": "adapter_params"}
    file.write_text(json.dumps(manifest))
    given = {"algorithm": "heuristic", "precision": "fp32"}
    for rule, words in (({}, "least adapter params with accuracy >="), ({"prefer": "accuracy"}, "max accuracy")):
        searched = search_by_recipe(run, settings=given, rule=rule, force=True)
        assert searched.best_rule.startswith(words)
    both = ("--prefer", "cheaper", "--accuracy-delta", "0.01")
    done = run_stage("search", *arguments(run, *both, "--dry-run"), code=2)
    assert "Give --prefer or --accuracy-delta" in done.stderr


def test_an_algorithm_of_a_package_that_has_gone_is_named(run: Run) -> None:
    file = run.super_adapter / MANIFEST
    manifest = json.loads(file.read_text())
    manifest["details"]["search"]["algorithm"] = "parzen"
    file.write_text(json.dumps(manifest))
    with pytest.raises(ArtefactMismatch, match="there is no search algorithm 'parzen'") as caught:
        open_run(run)
    assert "Install the package" in str(caught.value.remedy)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_no_generator_takes_is_refused_at_once(seed: int) -> None:
    refused = run_stage("search", "--run", "absent", "--seed", str(seed), code=2)
    assert "'--seed'" in refused.stderr


def test_plain_adapters_count_beside_the_sparse_weights(tmp_path: Path) -> None:
    from train.stage import run_recipe

    run = Run(tmp_path / "run")
    run_recipe(tiny_recipe(tmp_path, masked=False), run.path)
    found: Searched = search(run, settings(algorithm="random", evaluations=4), BestRule())
    assert {record.nonzero_params - record.adapter_params for record in found.records} == {
        count_frozen_nonzero(load_super_network(run))
    }


def test_the_command_explains_itself_without_heavy_imports() -> None:
    script = (
        "import sys, search.__main__; print([name for name in ('torch', 'pymoo', "
        "'matplotlib', 'lm_eval') if name in sys.modules])"
    )
    asked = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert asked.stdout.strip() == "[]"
    subprocess.run([sys.executable, "-m", "search", "--help"], cwd=ROOT, capture_output=True, check=True)
    missing = run_stage("search", "--run", "nowhere", "--json")
    assert (missing.returncode, json.loads(missing.stdout)["error"]) == (3, "ArtefactMissing")


def test_less_memory_finds_the_same_here_and_in_workers(trained: Path, tmp_path: Path) -> None:
    journals = []
    for memory, workforce in (
        ("fast", Workforce()),
        ("lean", Workforce()),
        ("lean", Workforce("processes", workers=1)),
    ):
        run = Run(shutil.copytree(trained, tmp_path / f"{memory}-{workforce.executor}"))
        search(run, settings(evaluations=4), BestRule(), workforce=workforce, memory=memory)
        journals.append(content(run.search / "journal.jsonl"))
    assert journals[0] == journals[1] == journals[2]


def test_too_little_memory_is_refused_with_what_would_fit(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shearling.resources.available_memory_bytes", lambda: 2**20)
    for changed, options, remedy in (
        ({}, {"memory": "fast"}, "--memory lean"),
        ({}, {"memory": "lean"}, "--batch-size"),
        ({"layer_formats": ("int8", "int4")}, {"memory": "fast"}, "--batch-size"),
        ({"layer_formats": ("int8", "int4")}, {"memory": "lean"}, "--batch-size"),
        ({}, {"workforce": Workforce("processes", workers=2)}, "fewer --workers"),
    ):
        with pytest.raises(ResourceExhausted, match=r"of memory needed, 1\.0 MiB available") as caught:
            search(run, settings(**changed), BestRule(), **options)
        assert remedy in str(caught.value.remedy)
        assert "lean" not in str(caught.value.remedy) or remedy == "--memory lean"
    assert not run.search.exists()


def test_memory_is_planned_for_the_workers_that_there_will_be_and_for_the_device(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shearling.executors.executor.available_cpus", lambda: 8)
    monkeypatch.setattr("search.estimates.available_memory_bytes", lambda: 2**50)
    inputs = open_inputs(open_run(run), task=None)

    def plan(inputs: SearchInputs, workforce: Workforce) -> MemoryPlan:
        return plan_memory(inputs, settings(), workforce, "auto")

    one_bytes = plan(inputs, Workforce()).estimate.memory_bytes
    assert plan(inputs, Workforce("processes", threads=4)).estimate.memory_bytes == 2 * one_bytes
    monkeypatch.setattr("search.estimates.free_device_bytes", lambda: 0)
    assert plan(inputs, Workforce()).lean
    assert not plan(inputs, Workforce("processes", workers=1)).lean, "workers compute on the CPU"
    adapter = inputs.space.adapter.model_copy(update={"grid": GridSpec(bits=8)})
    rounded = replace(inputs, space=inputs.space.model_copy(update={"adapter": adapter}))
    on_grid = plan(rounded, Workforce())
    assert not on_grid.lean
    assert "lean" not in on_grid.remedy


def test_a_dry_run_shows_the_memory_and_searches_nothing(run: Run) -> None:
    shown = json.loads(run_stage("search", *arguments(run, "--dry-run", "--json")).stdout)
    assert set(shown["parts"]) == {"search"}
    assert 2**28 < shown["parts"]["search"]["memory_bytes"] < 2**31
    assert not run.search.exists()


@pytest.mark.parametrize("there", [True, False])
def test_candidates_are_measured_where_they_were_trained(
    there: bool, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to the device: none need be here."""
    asked: list[object] = []

    def build(*_arguments: object, device: str | None, **_options: object) -> None:
        asked.append(device)
        raise UsageError("seen")

    monkeypatch.setattr("search.stage.build_objective", build)
    monkeypatch.setattr("torch.cuda.is_available", lambda: there)
    monkeypatch.setattr("search.estimates.free_device_bytes", lambda: 2**40)
    for workforce in (Workforce(), Workforce("processes", workers=1)):
        with pytest.raises(UsageError, match="seen"):
            search(run, settings(), BestRule(), workforce=workforce)
    assert asked == ["cuda" if there else None, None]
