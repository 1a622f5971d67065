"""The model card: metadata that the hub's own library reads, what was measured, and a recipe that makes it again."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import tomli_w
from huggingface_hub import EvalResult, ModelCard

from export.plan import plan_frozen, plan_subnet
from export.quantization.settings import Quantization
from export.reporting import lineage
from export.reporting.card import write_card
from export.reporting.report import ExportReport, QuantizationReport
from export.request import ExportRequest
from export.stage import export_subnet
from search.front import BestRule
from search.journal import JOURNAL_FILE, read_journal
from search.pick import pick_row
from search.stage import search
from shearling.artefact import open_artefact
from shearling.recipe.recipe import Recipe, read_recipe, section_as_json
from shearling.run import Run
from shearling.strict_json import read_document
from tests.support.command_parsing import parse_command
from tests.support.documents import ROOT
from tests.support.small_searches import SMALL_SEARCH
from tests.support.tiny_runs import write_tiny_recipe
from train.stage import run_recipe
from train.super_adapter.artefact import recipe_inputs

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]  # torchao warns while optimum imports it
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))
SETTINGS = dataclasses.replace(SMALL_SEARCH, evaluations=4, population=2)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("card")
    made = write_tiny_recipe(directory, train={"steps": 3}, search={"algorithm": "heuristic"})
    (directory / "source" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    return made


@pytest.fixture(scope="module")
def run(recipe) -> Run:
    run = Run(recipe.parent / "run")
    run_recipe(read_recipe(recipe), run.path)
    search(run, SETTINGS, BestRule(prefer="cheaper", max_params=100_000))
    return run


@pytest.fixture(scope="module")
def exported(run) -> Path:
    request = ExportRequest(output=run.export, formats=("openvino", "hf"), weight_format="int8")
    return export_subnet(run.search / "best.json", request).path


@pytest.fixture(scope="module")
def report(exported) -> ExportReport:
    return read_document(exported / "report.json", ExportReport)


def blocks_of(card: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", card.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_hub_reads_what_was_measured(exported, report):
    card = ModelCard.load(exported / "README.md")
    data = card.data
    assert (data.base_model, data.license, data.pipeline_tag) == (report.model_id, "apache-2.0", "text-generation")
    assert {"shearling", "openvino", "transformers", "pruned", "lora", "quantized"} == set(data.tags)
    (task,), held_back = report.tasks, report.lineage.expected
    figures = {(result.metric_value, result.metric_name) for result in data.eval_results}
    assert figures == {
        (task.accuracy, f"accuracy of openvino in int8, {task.n} rows"),
        (held_back.accuracy, f"the sub-network, on rows held back from its search, {held_back.n} rows"),
    }
    asked = {(result.dataset_name, result.dataset_split) for result in data.eval_results}
    assert asked == {("headlines", "validation")}
    assert all(isinstance(result, EvalResult) and result.verified is False for result in data.eval_results)
    # Data that is on no hub is named in words alone.
    assert data.datasets is None
    assert "its data is headlines.jsonl" in card.text
    for name, size in report.sizes_bytes.items():
        assert f"| `{name}/` | {size / 1e6:.1f} | " in card.text
    assert f"| {100 * task.accuracy:.1f} | {100 * task.difference:+.1f} " in card.text


def test_the_recipe_of_the_card_is_the_one_that_was_carried_out(recipe, exported):
    (text,) = blocks_of(exported / "README.md", "toml")
    again = recipe.parent / "again.toml"
    again.write_text(text, encoding="utf-8")
    carried_out = {
        name: getattr(SETTINGS, name) for name in ("algorithm", "evaluations", "population", "limit", "cost")
    }
    carried_out |= {"batch_size": 8, "precision": "fp32", "macs_seq_len": 16, "prefer": "cheaper"}
    given = read_recipe(recipe)
    # The options of the search have overridden the recipe's section.
    assert given.search.algorithm == "heuristic"
    assert read_recipe(again) == given.model_copy(update={"search": given.search.model_copy(update=carried_out)})


def test_its_commands_are_those_that_were_given(exported):
    commands = [shlex.split(line) for line in blocks_of(exported / "README.md", "sh")[0].splitlines()]
    assert commands[1:] == [
        ["python", "-m", "search", "--run", "RUN", "--max-params", "100000"],
        [
            *("python", "-m", "export", "--subnet", "RUN/search/best.json"),
            *("--formats", "openvino,hf", "--weight-format", "int8"),
        ],
    ]
    for _, _, stage, *arguments in commands:
        parse_command(f"{stage}.__main__", stage, arguments)


def test_a_row_that_was_picked_says_which(run, tmp_path):
    document = run.path / "other row.json"
    row = next(record.i for record in read_journal(run.search / JOURNAL_FILE) if record.part == "explored")
    pick_row(run, row, document)
    found = lineage.find_lineage(plan_subnet(document, ExportRequest(output=tmp_path / "export", formats=("hf",))))
    assert found.commands[2:] == (
        f"python -m search pick --run RUN --row {row} --output 'RUN/other row.json'",
        "python -m export --subnet 'RUN/other row.json' --formats hf --weight-format fp32",
    )
    parse_command("search.__main__", "search", shlex.split(found.commands[2])[3:])
    # The options of the search are its own wherever the document stands.
    assert found.recipe["search"]["prefer"] == "cheaper"


def test_no_path_of_this_machine_is_published_in_it(run, exported):
    for name in ("README.md", "report.json", "report.html"):
        assert str(run.path.parent) not in (exported / name).read_text(encoding="utf-8")


def test_the_tool_of_the_hub_knows_the_command_that_publishes(exported):
    words = shlex.split(blocks_of(exported / "README.md", "sh")[-1])
    assert words[:5] == ["hf", "auth", "login", "hf", "upload"]
    tool, environment = Path(sys.executable).with_name("hf"), {**os.environ, "HF_HUB_OFFLINE": "1"}
    told = subprocess.run(
        [tool, "upload", "--help"], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert "--private" in words
    assert all(option in told.stdout for option in words if option.startswith("--"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_survives_manifests_and_card(run, path):
    given = read_recipe(path)
    details = {
        "recipe": recipe_inputs(given),
        "model": section_as_json(given.model),
        "search": section_as_json(given.search),
    }
    adapter = open_artefact(run.super_adapter, kind="super_adapter").manifest.model_copy(update={"details": details})
    again = Recipe.model_validate(tomllib.loads(tomli_w.dumps(lineage._recipe(adapter, {}))))
    assert section_as_json(again) == section_as_json(given)


def test_a_recipe_of_an_older_adapter_says_what_it_left_to_the_defaults_of_its_time(run):
    adapter = open_artefact(run.super_adapter, kind="super_adapter").manifest
    older = {name: dict(section) for name, section in adapter.details["recipe"].items() if isinstance(section, dict)}
    told = {"train": {"draw": "independent", "largest_first": 0}, "adapter": {"scaling": "constant"}}
    told["task"] = {"train_on_end": True}
    for name, keys in told.items():
        for key in keys:
            del older[name][key]
    details = {**adapter.details, "recipe": {**adapter.details["recipe"], **older}}
    found = lineage._recipe(adapter.model_copy(update={"details": details}), {})
    assert {name: {key: found[name][key] for key in keys} for name, keys in told.items()} == told


def test_every_option_that_decides_the_content_is_told(run, tmp_path, monkeypatch):
    # No group divides the 60 inputs of the layers of this model.
    monkeypatch.setattr("export.plan._check_group_size", lambda *_: None)
    quantization = Quantization("balanced", 32, ("task", str(tmp_path / "some text.txt")), 4, True, 0.75)
    (tmp_path / "some text.txt").write_text("Text. " * 2000)
    request = ExportRequest(
        output=tmp_path / "export",
        formats=("openvino",),
        weight_format="int4",
        sparse_kernels=("openvino",),
        quantization=quantization,
        merge="masked",
    )
    command = lineage.find_lineage(plan_subnet(run.search / "best.json", request)).commands[-1]
    assert command == (
        "python -m export --subnet RUN/search/best.json --formats openvino --weight-format int4 --sparse-kernel "
        "openvino --quantization balanced --group-size 32 --dataset 'task,some text.txt' --num-samples 4 --all-layers "
        "--ratio 0.75 --merge masked"
    )
    parse_command("export.__main__", "export", shlex.split(command)[3:])
    by_nncf = dataclasses.replace(
        request, quantization=Quantization(samples=4, awq=True, scale_estimation=True, gptq=True)
    )
    command = lineage.find_lineage(plan_subnet(run.search / "best.json", by_nncf)).commands[-1]
    assert "--num-samples 4 --awq --scale-estimation --gptq --merge masked" in command
    parse_command("export.__main__", "export", shlex.split(command)[3:])


def test_a_frozen_model_knows_the_run_that_it_is_of_and_no_other(run, tmp_path):
    """Its command names what was written: an adapter was not."""
    request = ExportRequest(output=tmp_path / "export", formats=("hf", "peft"))
    for path in (run.sparse, run.base):
        found = lineage.find_lineage(plan_frozen(path, request))
        assert found.recipe["name"] == "tiny"
        assert found.license == {"license": "apache-2.0"}
        assert found.commands[0].startswith("python -m train --recipe")
        assert found.commands[1:] == (f"python -m export --base RUN/{path.name} --formats hf --weight-format fp32",)
    alone = Path(shutil.copytree(run.sparse, tmp_path / "sparse"))
    found = lineage.find_lineage(plan_frozen(alone, request))
    assert found.recipe is None
    assert len(found.commands) == 1


def test_every_row_of_the_parity_table_has_the_cells_of_its_head(report, tmp_path):
    broken = report.parity[0].model_copy(
        update={"violations": ("max |Δlogit| 0.012 exceeds 0.001",), "candidate": "a|b"}
    )
    write_card(tmp_path / "README.md", report.model_copy(update={"parity": (broken, *report.parity)}), {})
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    table = card.partition("## Compared\n\n")[2].partition("\n\n")[0].splitlines()
    assert len(table) == 2 + 1 + len(report.parity)
    assert r"max \|Δlogit\| 0.012 exceeds 0.001" in table[2]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in table} == {8}


def test_the_head_that_plain_onnx_leaves_in_float32_is_told(report, tmp_path):
    made = QuantizationReport(
        preset="balanced",
        group_size=32,
        dataset=("task",),
        samples=64,
        all_layers=False,
        ratio=1.0,
        matrices=18,
        layer_error=0.01,
        kl_before=None,
        kl_after=None,
        seconds=1.0,
    )
    for formats, left in ((("onnx",), True), (("openvino",), False)):
        changed = report.model_copy(update={"quantization": made, "formats": formats})
        write_card(tmp_path / "README.md", changed, {})
        assert ("embedding and head in float32" in (tmp_path / "README.md").read_text()) is left


def test_an_accuracy_of_another_model_is_not_published(report, tmp_path):
    assert report.lineage.expected is not None
    for exact in (True, False):
        write_card(tmp_path / "README.md", report.model_copy(update={"exact": exact}), {})
        card = ModelCard.load(tmp_path / "README.md")
        told = any("held back" in result.metric_name for result in card.data.eval_results or [])
        assert (told, "held back" in card.text) == (exact, exact)


def test_what_nobody_knows_is_not_claimed(report, tmp_path):
    unknown = report.lineage.model_copy(update={"license": {}, "recipe": None, "expected": None})
    write_card(tmp_path / "README.md", report.model_copy(update={"lineage": unknown, "tasks": ()}), {})
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.license, card.data.eval_results, card.data.metrics) == (None, None, None)
    assert "is not stated in its files" in card.text
    assert "The run holds no whole recipe" in card.text
    # A report of an older version.
    write_card(tmp_path / "README.md", report.model_copy(update={"lineage": None}), {})
    assert ModelCard.load(tmp_path / "README.md").data.base_model == report.model_id


@pytest.mark.parametrize(("name", "is_one"), [("imdb", True), ("stanfordnlp/imdb", True), ("/data/rows", False)])
def test_a_data_set_of_the_hub_is_named_by_its_id(report, tmp_path, name, is_one):
    section = {"name": "reviews", "asset": None, "dataset": {"name": name}, "path": None}
    task = lineage._task(section)
    assert (task.hub_id, task.source) == (name if is_one else None, name.removeprefix("/data/"))
    known = report.lineage.model_copy(update={"task": task})
    write_card(tmp_path / "README.md", report.model_copy(update={"lineage": known}), {})
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.datasets == ([name] if is_one else None)
    assert {result.dataset_type for result in data.eval_results} == {name if is_one else "reviews"}
