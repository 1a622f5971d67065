"""What a search may measure: generated answers of the run's own task, and task files from anywhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from search.stage import search_by_recipe
from shearling.elastic.subnet import open_subnet
from shearling.elastic.super_network import load_super_network
from shearling.errors import NoCandidate, UsageError
from shearling.evaluation.evaluator import Evaluator, torch_scorer
from shearling.run import Run
from tests.support.stage_commands import run_stage
from tests.support.tiny_runs import HEADLINES, write_tiny_recipe

ROOT = Path(__file__).resolve().parent.parent.parent
CHOSEN = 'choices = [" no", " yes"]\ngold = "{{ label }}"\n'
GENERATED = """completion = " I say {{ number }}, {{ 'yes' if label else 'no' }}"
answer = "{{ 'yes' if label else 'no' }}"
answer_pattern = "yes|no"
max_new_tokens = 24
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose rows are told as a chain of thought that no model repeats word by word."""
    directory = tmp_path_factory.mktemp("generating")
    recipe = write_tiny_recipe(directory, train={"steps": 60, "save_steps": 60})
    text = recipe.read_text()
    assert CHOSEN in text
    recipe.write_text(text.replace(CHOSEN, GENERATED).replace("max_length = 32", "max_length = 64"))
    rows = [json.loads(line) for line in (directory / "headlines.jsonl").read_text().splitlines()]
    numbered = [{**row, "number": 997 * place} for place, row in enumerate(rows)]
    (directory / "headlines.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in numbered))
    run_stage("train", "--recipe", recipe, "--output", directory / "run", code=0)
    return directory / "run"


@pytest.fixture(scope="module")
def of_two_tasks(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with a task of [[data]] beside its own, and a copy of its own."""
    directory = tmp_path_factory.mktemp("two")
    recipe = write_tiny_recipe(directory, train={"steps": 2}, data=[{**HEADLINES, "name": "more"}])
    run_stage("train", "--recipe", recipe, "--output", directory / "run", code=0)
    run = Run(directory / "run")
    shutil.copytree(run.task, run.path / "copy")
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Run:
    return Run(shutil.copytree(trained, tmp_path / "run"))


def search(run: Run, *options: object) -> None:
    sizes = ("--evaluations", "2", "--population", "2", "--precision", "fp32")
    run_stage("search", "--run", run.path, *sizes, *options, code=0)


def write_task(directory: Path, split: str) -> Path:
    directory.mkdir()
    rows = [{"question": f"Is {number} even? Answer:", "label": number % 2} for number in range(6)]
    (directory / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    path = directory / "even.yaml"
    path.write_text(
        f"task: even\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    {split}: rows.jsonl\n"
        f"{split}_split: {split}\noutput_type: multiple_choice\ndoc_to_text: '{{{{question}}}}'\n"
        "doc_to_choice: [' yes', ' no']\ndoc_to_target: label\ntarget_delimiter: ''\nmetric_list:\n  - metric: acc\n"
    )
    return path


def test_generated_answers_are_searched_by_what_is_found_in_them(run: Run) -> None:
    search(run)
    metrics = open_subnet(run.search / "best.json").subnet.metrics
    assert metrics is not None
    # Most rows end in the right word, and none is told as the data tells it.
    assert metrics.accuracy > 0.5
    network = load_super_network(run)
    network.activate(open_subnet(run.search / "best.json").subnet.choice)
    scorer = torch_scorer(network.model, network.tokenizer)
    again = Evaluator("headlines", split="validation", include_path=run.task).measure(scorer)
    held_back = metrics.held_back
    assert held_back is not None
    right = metrics.accuracy * metrics.n + held_back.accuracy * held_back.n
    assert again.n == metrics.n + held_back.n
    assert again.accuracy * again.n == pytest.approx(right)
    config = json.loads((run.task / "headlines_validation.yaml").read_text())
    assert (config["output_type"], config["generation_kwargs"]["max_gen_toks"]) == ("generate_until", 24)
    told = {"output_type": "loglikelihood", "doc_to_target": "completion", "metric_list": [{"metric": "acc"}]}
    kept = {key: config[key] for key in ("dataset_path", "dataset_kwargs", "validation_split", "doc_to_text")}
    whole = {**kept, **told, "task": "whole", "target_delimiter": "", "metadata": {"version": 1.0}}
    (run.task / "whole.yaml").write_text(json.dumps(whole))
    word_by_word = Evaluator("whole", split="validation", include_path=run.task).measure(scorer)
    assert word_by_word.accuracy == 0


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [("even.yaml", "{{question}}", "Say: {{question}}"), ("rows.jsonl", "Is 0 even?", "Is 8 even?")],
)
def test_an_edited_task_is_another_question(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, before: str, after: str
) -> None:
    task = write_task(tmp_path / "own", "validation")
    settings = {"task": str(task), "evaluations": 2, "population": 2, "precision": "fp32"}
    unfinished = run.search.with_name(".search.partial")

    def leave_unfinished(**options: Any) -> list[str]:
        with pytest.raises(NoCandidate):
            search_by_recipe(run, settings=settings, rule={"min_accuracy": 1.5}, **options)
        return (unfinished / "pieces.jsonl").read_text().splitlines()

    pieces = leave_unfinished()
    # By another path as well.
    monkeypatch.chdir(task.parent)
    settings["task"] = task.name
    assert leave_unfinished() == pieces, "measured again"
    assert not list(unfinished.glob("journal-*")), "set aside"
    # As a version wrote it that told no path of any task.
    assert json.loads((unfinished / "settings.json").read_text())["task"] is None
    edited = tmp_path / "own" / file
    edited.write_text(edited.read_text().replace(before, after))
    with pytest.raises(UsageError, match="none of them counts in this search"):
        search_by_recipe(run, settings=settings, rule={"min_accuracy": 1.5})
    again = leave_unfinished(consent=lambda _lost: True)
    assert (again[: len(pieces)], len(again)) == (pieces, 2 * len(pieces))


def test_test_rows_are_searched_only_where_that_is_said(run: Run, tmp_path: Path) -> None:
    file = write_task(tmp_path / "own", "test")
    with pytest.raises(UsageError, match="no validation split: it has test") as refused:
        search_by_recipe(run, settings={"task": str(file)}, rule={})
    assert "--split test" in str(refused.value.remedy)
    with pytest.raises(UsageError, match="the test rows of the run judge"):
        search_by_recipe(run, settings={"split": "test"}, rule={})
    search(run, "--task", file, "--split", "test")
    metrics = open_subnet(run.search / "best.json").subnet.metrics
    assert metrics is not None
    assert (metrics.task, metrics.split) == ("even", "test")


@pytest.mark.parametrize("named", ["task", "task/headlines_test.yaml", "copy", "data/more"])
def test_the_runs_own_test_rows_are_refused_by_whatever_path_they_are_named(of_two_tasks: Run, named: str) -> None:
    task = of_two_tasks.path / named
    refused = run_stage("search", "--run", of_two_tasks.path, "--task", task, "--split", "test", code=2)
    assert "the test rows of the run judge what a search finds" in refused.stderr


@pytest.mark.slow
def test_a_run_on_conversations_and_one_on_texts_are_searched(tmp_path: Path) -> None:
    rows = [f"Report {number}: {'sure' if number % 2 else 'rain'}" for number in range(60)]
    talk = [[{"from": "human", "value": row}, {"from": "gpt", "value": row[:6]}] for row in rows]
    lines = [json.dumps({"talk": turns, "note": row}) for turns, row in zip(talk, rows, strict=True)]
    without: dict[str, object] = dict.fromkeys(HEADLINES)
    for form in ({"messages": "talk"}, {"text": "{{ note }}"}):
        directory = tmp_path / next(iter(form))
        task = {**without, "name": "forms", "path": "forms.jsonl", "max_length": 64, **form}
        recipe = write_tiny_recipe(directory, task=task, train={"steps": 4})
        (directory / "forms.jsonl").write_text("".join(f"{line}\n" for line in lines))
        run_stage("train", "--recipe", recipe, "--output", directory / "run", code=0)
        search(Run(directory / "run"))
        found = open_subnet(directory / "run" / "search" / "best.json").subnet
        assert found.metrics is not None
        assert found.metrics.loss is not None
