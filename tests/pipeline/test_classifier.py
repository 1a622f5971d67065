"""An encoder from pretrained to deployed: new head, elastic widths, search, cut, export, evaluation, on a tiny BERT."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from export.pipeline import export_subnet
from export.report import ExportReport
from export.request import ExportRequest
from search.stage import Constraints, SearchSettings, search
from serve.forward import measure_forwards
from shearling.checkpoint import load_model
from shearling.errors import RecipeInvalid, UsageError
from shearling.recipe import read_recipe
from shearling.run import Run
from shearling.scoreboard import score_models
from shearling.strict_json import read_document
from shearling.subnet import open_subnet
from tests.tiny_models import save_tiny_encoder
from tests.tiny_runs import write_headlines
from train.pipeline import run_recipe

SETTINGS = SearchSettings(
    algorithm="nsga2", evaluations=6, population=3, seed=0, limit=8, task=None, batch_size=8, precision="fp32", cost="latency", macs_seq_len=16
)
RECIPE = """schema = "shearling.recipe/1"
name = "tiny"
{extra}
[model]
model_id = "tiny/bert"
path = "source"
head = "classifier"

[task]
name = "headlines"
path = "headlines.jsonl"
text = "{{{{ headline }}}}"
prompt = "{{{{ text }}}}"
choices = ["no", "yes"]
gold = "{{{{ label }}}}"
max_length = 32

[adapter]
rank = 4
alpha = 8
masked = false

[[adapter.groups]]
name = "qv"
modules = ["query", "value", "output.dense"]
ranks = [4, 2]

[width]
reorder = "wanda"

[width.calibration]
samples = 4
seq_len = 16

[[width.groups]]
name = "heads"
part = "attention"
widths = [[48, 24], [48, 36, 12]]

[[width.groups]]
name = "ffn"
part = "feed_forward"
widths = [72, 48, 24]

[train]
steps = 30
batch_size = 16
learning_rate = 0.02
precision = "fp32"
"""


def write_recipe(directory: Path, extra: str = "") -> Path:
    save_tiny_encoder(directory / "source")
    write_headlines(directory / "headlines.jsonl", 200)
    recipe = directory / "recipe.toml"
    recipe.write_text(RECIPE.format(extra=extra))
    return recipe


def test_an_encoder_goes_the_whole_road(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run_recipe(read_recipe(write_recipe(tmp_path)), run.path)
    losses = [entry["loss"] for line in (run.super_adapter / "training_log.jsonl").read_text().splitlines() if "loss" in (entry := json.loads(line))]
    assert losses[-1] < losses[0]
    searched = search(run, SETTINGS, Constraints(accuracy_delta=0.5))
    assert all(record.latency_ms and record.parameters for record in searched.records)
    exported = export_subnet(run.search / "best.json", ExportRequest(output=run.export, formats=("hf", "openvino", "onnx", "peft")))
    report = read_document(exported.path / "report.json", ExportReport)
    assert report.head == "classifier"
    assert report.violations == []
    assert all(check.parity.max_abs <= 1e-4 for check in report.parity if check.precision == "fp32")
    assert {check.candidate for check in report.parity} >= {"merged", "openvino", "onnx"}
    widths = open_subnet(run.search / "best.json").subnet.widths
    model = load_model(exported.path / "model")
    assert all(model.get_submodule(path).out_features == width for path, width in widths.items())
    board = score_models([run.export], task=str(run.task), split="test", precision="fp32")
    assert board.scores[0].n == len((run.task / "test.jsonl").read_text().splitlines())
    times = measure_forwards([run.export, run.export], tokens=16, blocks=2, threads=1)
    assert times[0].speedup == 1.0
    with pytest.raises(UsageError, match="the sparse kernel is for language models") as caught:
        export_subnet(run.search / "best.json", ExportRequest(output=tmp_path / "packed", formats=("openvino",), weights="int8", kernel="sparse"))
    assert caught.value.where == "--kernel"


def test_a_classifier_cannot_be_pruned(tmp_path: Path) -> None:
    with pytest.raises(RecipeInvalid, match="cannot be pruned"):
        read_recipe(write_recipe(tmp_path, extra='[sparsity]\nmethod = "magnitude"\n'))
