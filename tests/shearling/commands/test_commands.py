"""`shearling doctor`, `inspect`, `evaluate` and `schema` as a user meets them."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from shearling.artefact import Artefact, Manifest, write_artefact
from shearling.commands.doctor import _sparse_kernels
from shearling.commands.inspection import _screen, inspect_artefact
from shearling.commands.members import members_page
from shearling.console import log
from shearling.errors import (
    ArtefactCorrupt,
    ArtefactError,
    ArtefactMismatch,
    ArtefactMissing,
    PackageMissing,
    UsageError,
)
from shearling.evaluation.evaluator import Evaluator
from shearling.evaluation.lm_eval_task import write_lm_eval_tasks
from shearling.evaluation.scoreboard import Score, Scoreboard, parse_tasks, score_models, scoreboard_screen
from shearling.evaluation.task import TaskFacts, TaskRow, locate_task, write_rows
from shearling.executors.executor import Workforce
from shearling.kernel.build import build_library
from shearling.recipe.recipe import recipe_json_schema
from shearling.registry.tables import TABLES
from shearling.strict_json import validate_document, write_document
from tests.support.instruction_sets import KERNELS
from tests.support.stage_commands import run_stage
from tests.support.tiny_models import save_tiny
from tests.support.toy_package import toy_package
from train.screen import summarise

ROOT = Path(__file__).resolve().parents[3]


def _run(*arguments, code=0):
    return run_stage("shearling", *arguments, code=code)


def test_doctor_finds_this_project():
    data = json.loads(_run("doctor", "--json").stdout)
    assert set(data["stages"].values()) == {str(ROOT)}
    assert data["versions"]["torch"]
    assert "CPU" in data["openvino_devices"]
    assert data["sparse_kernels"]["openvino"]["kernels"] in KERNELS


def test_doctor_tells_kernels_of_onnx_runtime_without_openvino(monkeypatch, tmp_path):
    def missing():
        raise PackageMissing("the package openvino is not installed")

    library = build_library()
    monkeypatch.setattr("shearling.kernel.library.kernels_in_use", missing)
    monkeypatch.setattr("shearling.kernel.build.build_onnx_runtime_library", lambda: library)
    found = _sparse_kernels()
    assert "openvino" in found["openvino"]["missing"]
    assert found["onnxruntime"] == {"kernels": "compiled", "missing": None}
    (damaged := tmp_path / "library.so").write_bytes(b"of another machine")
    monkeypatch.setattr("shearling.kernel.build.build_onnx_runtime_library", lambda: damaged)
    assert str(damaged) in _sparse_kernels()["onnxruntime"]["missing"]


def test_doctor_says_why_there_are_no_sparse_kernels(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    data = json.loads(_run("doctor", "--json").stdout)
    assert "no-such-compiler" in data["sparse_kernels"]["openvino"]["missing"]
    assert data["sparse_kernels"]["openvino"]["missing"] in data["findings"]


def test_schema_is_printed_as_it_is():
    assert json.loads(_run("schema").stdout) == recipe_json_schema()


@pytest.mark.parametrize("command", ["schema", "members"])
def test_a_page_that_cannot_be_written_is_refused(command, tmp_path):
    absent = tmp_path / "absent" / "page"
    assert f"{absent}: no file can be written here" in _run(command, "--output", absent, code=2).stderr


def test_inspect_verifies(tmp_path):
    with write_artefact(tmp_path / "base", kind="base", seed=3) as draft:
        (draft.directory / "weights").write_bytes(b"12345")
        draft.details["recipe"] = {"modules": ["[bold]q_proj[/bold]"]}
    data = inspect_artefact(tmp_path / "base").data
    assert (data["verified"], data["bytes"], data["manifest"]["seed"]) == (True, 5, 3)
    shown = _run("inspect", tmp_path / "base").stdout
    assert "[bold]" in shown
    with pytest.raises(ArtefactMissing, match="base"):
        inspect_artefact(tmp_path)
    (tmp_path / "base" / "weights").write_bytes(b"12346")
    with pytest.raises(ArtefactCorrupt):
        inspect_artefact(tmp_path / "base")
    _run("inspect", tmp_path / "base", code=3)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluate")
    task = root / "task"
    task.mkdir()
    rows = [
        TaskRow(
            id=f"{i:064x}",
            prompt=f"Is {i} sparse? Answer:",
            choices=(" no", " yes"),
            gold=i % 2,
            completion=" no",
            text=f"Number {i} is sparse.",
        )
        for i in range(12)
    ]
    write_rows(task, "test", rows)
    write_lm_eval_tasks(task, "numbers", multiple_choice=True)
    write_document(task / "task.json", TaskFacts(name="numbers", multiple_choice=True, rows={"test": 12}))
    return save_tiny("llama", root / "model"), task


def test_evaluate_counts_zeros_and_measures(measured):
    import torch

    from shearling.model.checkpoint import load_model, load_tokenizer, save_model
    from shearling.model.layers import find_layers

    dense, task = measured
    halved = dense.with_name("halved")
    model = load_model(dense)
    with torch.no_grad():
        for linear in find_layers(model).linears().values():
            linear.weight.view(-1)[::2] = 0
    save_model(model, load_tokenizer(dense), halved)
    board = score_models([dense, halved], tasks=[locate_task(str(task))], split="test", precision="fp32")
    first, second = board.scores
    assert board.tasks == ("numbers_test",)
    assert first.rows_sha256 == second.rows_sha256
    assert (first.directory, first.n, second.n) == (str(dense), 12, 12)
    assert first.sparsity == 0.0
    assert second.sparsity == pytest.approx(0.5, abs=1e-3)
    assert first.interval[0] <= first.accuracy <= first.interval[1]
    assert first.bits_per_byte > 0
    assert first.bits_per_byte != second.bits_per_byte


def test_evaluate_on_workers_scores_the_same(measured, tmp_path):
    model, task = measured
    other = shutil.copytree(model, tmp_path / "other")
    options = {"tasks": [locate_task(str(task))], "split": "test", "precision": "fp32"}
    alone = score_models([model, other, model], **options, workforce=Workforce(threads=1))
    together = score_models([model, other, model], **options, workforce=Workforce("processes", workers=2))

    def told(board: Scoreboard) -> list[dict[str, object]]:
        return [score.model_dump(exclude={"seconds"}) for score in board.scores]

    assert told(together) == told(alone)


def test_evaluate_reserves_no_devices(measured, monkeypatch):
    model, task = measured
    monkeypatch.setattr("shearling.evaluation.scoreboard.check_workforce", lambda *_: None)
    with pytest.raises(UsageError, match="computes on processors alone") as caught:
        score_models(
            [model],
            tasks=parse_tasks(str(task)),
            split="test",
            workforce=Workforce("ray", workers=1, gpus_per_worker=0.5),
        )
    assert caught.value.where == "--gpus-per-worker"
    _run("evaluate", model, "--tasks", task, "--gpus-per-worker", 0.5, code=2)


def test_evaluate_speaks_json(measured, tmp_path):
    model, task = measured
    second = shutil.copytree(task, tmp_path / "second")
    write_lm_eval_tasks(second, "again", multiple_choice=True)
    write_document(second / "task.json", TaskFacts(name="again", multiple_choice=True, rows={"test": 12}))
    options = ("--limit", 4, "--precision", "fp32")
    answer = json.loads(_run("evaluate", model, model, "--tasks", f"{task},{second}", *options, "--json").stdout)
    assert answer.pop("status") == "ok"
    board = validate_document(answer, Scoreboard, where="stdout")
    assert [(score.task, score.n) for score in board.scores] == [("numbers_test", 4)] * 2 + [("again_test", 4)] * 2
    assert board.on("numbers_test")[0].accuracy == board.on("again_test")[0].accuracy
    stream = io.StringIO()
    Console(file=stream, width=200).print(scoreboard_screen(board))
    assert "again_test" in stream.getvalue()


@pytest.mark.parametrize("name", ["runs/[old]/export", "runs/[/x]"])
def test_names_with_brackets_are_shown(tmp_path, name):
    """Rich takes what stands in brackets for its own."""
    once = {"n": 1, "rows_sha256": "0", "accuracy": 0.5, "interval": (0.0, 1.0), "loss": None, "seconds": 1.0}
    score = Score(directory=name, task=name, bits_per_byte=None, sparsity=None, **once)
    manifest = Manifest(
        schema="shearling.manifest/1",
        kind="task",
        created="now",
        files={},
        parents={},
        tools={},
        seed=None,
        command=(),
        details={},
    )
    artefact = Artefact(Path(name), manifest, "0" * 64)
    for screen in (
        scoreboard_screen(Scoreboard(split="test", precision="fp32", scores=(score,))),
        _screen(artefact, total_bytes=1),
        summarise(Path(name), {}).screen,
    ):
        stream = io.StringIO()
        Console(file=stream, width=200).print(screen)
        assert name in stream.getvalue()


@pytest.fixture
def proven(measured, tmp_path):
    """The model as a part of an export, and the task, each with a manifest."""
    model, task = measured
    with write_artefact(tmp_path / "export", kind="export") as draft:
        shutil.copytree(model, draft.directory / "model")
    with write_artefact(tmp_path / "task", kind="task") as draft:
        shutil.copytree(task, draft.directory, dirs_exist_ok=True)
        write_rows(draft.directory, "validation", [])
    return tmp_path / "export", tmp_path / "task"


def _scored(model, task):
    return score_models([model], tasks=parse_tasks(str(task)), split="test", limit=2, precision="fp32").scores


@pytest.mark.parametrize("part", [".", "model"])
def test_evaluate_verifies_a_model_before_it_loads(proven, part):
    export, task = proven
    assert _scored(export / part, task)[0].n == 2
    weights = export / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ArtefactCorrupt) as caught:
        _scored(export / part, task)
    assert caught.value.where == str(weights)


def test_evaluate_refuses_an_artefact_that_does_not_run(proven, tmp_path):
    export, task = proven
    with write_artefact(tmp_path / "other", kind="benchmark") as draft:
        shutil.copytree(export / "model", draft.directory / "model")
    with pytest.raises(ArtefactMismatch, match="a benchmark artefact, which does not run"):
        _scored(tmp_path / "other", task)


@pytest.mark.parametrize("name", ["test.jsonl", "numbers_test.yaml", "numbers_test_text.yaml", "task.json"])
def test_evaluate_verifies_what_it_reads_of_a_task_and_nothing_else(proven, name):
    export, task = proven
    (task / "validation.jsonl").unlink()
    assert _scored(export, task)[0].n == 2
    with (task / name).open("a") as stream:
        stream.write("\n")
    with pytest.raises(ArtefactCorrupt) as caught:
        _scored(export, task)
    assert caught.value.where == str(task / name)


def test_evaluate_refuses_what_it_cannot_measure(measured, tmp_path):
    model, task = measured
    tasks = parse_tasks(str(task))
    with pytest.raises(ArtefactMissing, match="no model here"):
        score_models([tmp_path], tasks=tasks, split="test")
    with pytest.raises((ArtefactMissing, UsageError)):
        score_models([model], tasks=tasks, split="validation")
    classifier = tmp_path / "classifier"
    classifier.mkdir()
    (classifier / "config.json").write_text('{"architectures": ["BertForSequenceClassification"]}')
    with pytest.raises(UsageError, match="are not compared") as caught:
        score_models([model, classifier], tasks=tasks, split="test")
    assert caught.value.where == str(classifier)
    with pytest.raises(UsageError, match="the task of its run alone"):
        score_models([classifier], tasks=parse_tasks("hellaswag"), split="test")


@pytest.mark.parametrize("workforce", [Workforce(), Workforce("processes", workers=1)])
def test_what_was_measured_before_a_model_fails_is_shown(measured, tmp_path, capsys, monkeypatch, workforce):
    model, task = measured
    monkeypatch.setattr(log, "width", 400)
    broken = shutil.copytree(model, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"")
    with pytest.raises(ArtefactError):
        score_models([model, broken], tasks=parse_tasks(str(task)), split="test", precision="fp32", workforce=workforce)
    (table,) = capsys.readouterr().err.split("measured before this ended:")[1:]
    assert "accuracy" in table
    assert str(model) in table
    assert str(broken) not in table


def test_a_task_without_accuracy_is_refused_before_anything_is_measured(measured, tmp_path, monkeypatch):
    monkeypatch.setattr(Evaluator, "measure", lambda *_: pytest.fail("something was measured"))
    model, task = measured
    second = shutil.copytree(task, tmp_path / "second")
    config = json.loads((second / "numbers_test_text.yaml").read_text())
    (second / "alone.yaml").write_text(json.dumps({**config, "task": "alone"}))
    tasks = parse_tasks(f"{task},{second / 'alone.yaml'}")
    with pytest.raises(UsageError, match="task alone: reports no accuracy, only bits_per_byte"):
        score_models([model], tasks=tasks, split="test")


def test_tasks_are_a_list_of_names(measured, tmp_path):
    _, task = measured
    here, known = parse_tasks(f"{task}, hellaswag,")
    assert (here.name, here.directory, known.name, known.directory) == ("numbers", task, "hellaswag", None)
    with pytest.raises(ArtefactMissing, match="task\\.json"):
        parse_tasks(f"{task},{tmp_path}")
    for text, said in ((",", "no task"), ("a,a", "twice")):
        with pytest.raises(UsageError, match=said):
            parse_tasks(text)
    other = shutil.copytree(task, tmp_path / "other")
    with pytest.raises(UsageError, match="two tasks are called numbers, and their scores could not be told apart"):
        parse_tasks(f"{task},{other}")


def test_the_page_of_members_is_current():
    assert (ROOT / "docs" / "members.md").read_text(encoding="utf-8") == members_page(), "run: make schema"


def test_members_of_every_table_are_shown_those_of_other_packages_too(tmp_path):
    code = (
        "from shearling.registry.search_algorithms import SearchAlgorithm\n"
        "ENTRY = SearchAlgorithm(name='tea_leaves', summary='no science', implementation=None)\n"
    )
    environment = toy_package(tmp_path / "toy", group="shearling.search_algorithms", name="tea_leaves", code=code)
    command = [sys.executable, "-m", "shearling", "members", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=ROOT)
    answer = json.loads(done.stdout)
    assert answer.keys() == {"status", *TABLES}
    assert [fact["name"] for fact in answer["Search algorithms"]][-1] == "tea_leaves"
    assert {fact["name"]: fact["needs_calibration"] for fact in answer["Pruning methods"]} == {
        "wanda": "yes",
        "sparsegpt": "yes",
        "alps": "yes",
        "magnitude": "no",
    }
