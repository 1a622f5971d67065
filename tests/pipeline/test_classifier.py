"""An encoder from pretrained to deployed: new head, elastic widths, search, cut, export, evaluation, on a tiny BERT."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from transformers import BartConfig, CohereConfig, SqueezeBertConfig

from benchmarks.gguf_writer import write_gguf
from export.formats.classifier import onnx_class_logits, openvino_class_logits
from export.formats.openvino import FLOAT32_CPU
from export.plan import plan_subnet
from export.request import ExportRequest
from export.stage import export_frozen, export_subnet
from export.verification.parity import fixed_blocks
from search.front import BestRule
from search.stage import search
from serve.bench.forward import _load, measure_forwards
from serve.runtimes.deployment import find_deployment
from shearling.artefact import open_artefact
from shearling.calibration.windows import token_stream
from shearling.elastic.mask import MASK_FILE, load_masks
from shearling.elastic.subnet import describe_subnet, open_subnet
from shearling.elastic.super_network import ADAPTER_FILE, PEFT_PREFIX, load_super_network, read_adapter_file
from shearling.errors import ModelUnsupported, RecipeInvalid, UsageError
from shearling.evaluation.scoreboard import parse_tasks, score_models
from shearling.evaluation.task import read_rows
from shearling.model.checkpoint import load_model
from shearling.recipe.recipe import read_recipe
from shearling.run import Run
from shearling.strict_json import write_document
from shearling.target import Target, parse_target
from tests.support.exact_merges import merge_error
from tests.support.longer import mostly_slow
from tests.support.onnxruntime_headers import needs_headers
from tests.support.small_searches import SMALL_SEARCH
from tests.support.tiny_models import FAMILIES, VOCABULARY, save_tiny_encoder, tiny_tokenizer
from tests.support.tiny_runs import write_headlines
from train.stage import run_recipe

SETTINGS = replace(SMALL_SEARCH, cost="bytes")
SPARSITY = """
[sparsity]
method = "wanda"
ratio = 0.5

[sparsity.calibration]
samples = 4
seq_len = 16
"""
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
r = 4
lora_alpha = 8
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


def write_recipe(directory: Path, extra: str = "", family: str | None = None) -> Path:
    save_tiny_encoder(directory / "source", family)
    write_headlines(directory / "headlines.jsonl", 200)
    recipe = directory / "recipe.toml"
    recipe.write_text(RECIPE.format(extra=extra))
    return recipe


def test_an_encoder_goes_the_whole_road(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run_recipe(read_recipe(write_recipe(tmp_path)), run.path)
    losses = [
        entry["loss"]
        for line in (run.super_adapter / "training_log.jsonl").read_text().splitlines()
        if "loss" in (entry := json.loads(line))
    ]
    assert losses[-1] < losses[0]
    searched = search(run, SETTINGS, BestRule(accuracy_delta=0.5))
    assert all(record.model_bytes and record.parameters for record in searched.records)
    exported = export_subnet(
        run.search / "best.json", ExportRequest(output=run.export, formats=("hf", "openvino", "onnx", "peft"))
    )
    stored = (exported.path / "openvino" / "openvino_model.bin").stat().st_size
    assert searched.best.model_bytes == pytest.approx(stored, rel=0.01)
    report = exported.report
    assert report.head == "classifier"
    assert report.violations == []
    assert all(check.parity.max_abs <= 1e-4 for check in report.parity if check.precision == "fp32")
    assert {check.candidate for check in report.parity} >= {"merged", "openvino", "onnx"}
    widths = open_subnet(run.search / "best.json").subnet.widths
    model = load_model(exported.path / "model")
    assert all(model.get_submodule(path).out_features == width for path, width in widths.items())
    board = score_models([run.export], tasks=parse_tasks(str(run.task)), split="test", precision="fp32")
    assert board.scores[0].n == len((run.task / "test.jsonl").read_text().splitlines())
    times = measure_forwards([Target(run.export)] * 2, tokens=16, blocks=2, threads=1)
    assert times[0].speedup == 1.0


ADAPTED = {
    "bert": "query",
    "albert": "query",
    "distilbert": "q_lin",
    "deberta": "in_proj",
    "deberta-v2": "query_proj",
    "mpnet": "attn.q",
}


def run_without_widths(directory: Path, family: str, sparsity: str = "") -> Run:
    """Two steps on an encoder as it is published; not all of them have widths that can be cut."""
    text = write_recipe(directory, sparsity, family).read_text().replace("steps = 30", "steps = 2")
    text = text.replace('"query", "value", "output.dense"', json.dumps(ADAPTED[family]))
    text = text[: text.index("[width]")] + text[text.index("[train]") :]
    (directory / "recipe.toml").write_text(text)
    run = Run(directory / "run")
    run_recipe(read_recipe(directory / "recipe.toml"), run.path)
    return run


# DeBERTa's module in transformers compiles functions when it is imported.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("family", mostly_slow(ADAPTED, fast=("distilbert",)))
def test_encoders_are_taken_with_the_head_that_they_are_published_with(family: str, tmp_path: Path) -> None:
    # The layers of ALBERT are one, which is read once.
    sparsity = SPARSITY.replace("wanda", "magnitude") if family == "albert" else SPARSITY
    run = run_without_widths(tmp_path, family, sparsity)
    report = export_frozen(run.sparse, ExportRequest(output=run.export, formats=("hf", "openvino", "onnx"))).report
    assert report.violations == []
    assert all(check.parity.max_abs <= 1e-4 for check in report.parity if check.precision == "fp32")
    assert {check.format for check in report.zeros if check.zeros == check.pruned > 0} == {"model", "openvino", "onnx"}


def test_a_pooler_that_the_checkpoint_lacks_is_trained_with_the_head(tmp_path: Path) -> None:
    run = run_without_widths(tmp_path, "bert")
    stored, network = read_adapter_file(run.super_adapter / ADAPTER_FILE), load_super_network(run)
    trained = {name: stored[f"{PEFT_PREFIX}{name}"] for name in network.head}
    assert {name.rpartition(".")[0] for name in trained} == {"bert.pooler.dense", "classifier"}
    base = dict(load_model(run.base).named_parameters())
    assert all(torch.equal(network.head[name], tensor) for name, tensor in trained.items())
    assert not any(torch.equal(base[name], tensor) for name, tensor in trained.items())
    document = run.path / "smallest.json"
    described = describe_subnet(
        open_artefact(run.super_adapter, kind="super_adapter"),
        network.space.minimal(),
        subnet_id="smallest",
        location=run.path,
        metrics=None,
        provenance=None,
    )
    write_document(document, described)
    exported = export_subnet(document, ExportRequest(output=run.export, formats=("hf",)))
    merged = dict(load_model(exported.path / "model").named_parameters())
    assert all(torch.equal(merged[name], tensor) for name, tensor in trained.items())


def test_what_a_forward_is_timed_with_is_checked(pruned: Run, tmp_path: Path) -> None:
    exported = export_subnet(
        pruned.search / "best.json", ExportRequest(output=tmp_path / "export", formats=("openvino", "onnx"))
    )
    targets = [Target(exported.path), parse_target(f"{exported.path}@INFERENCE_PRECISION_HINT=f32")]
    times = measure_forwards(targets, tokens=16, blocks=2, threads=1)
    assert times[0].bytes == times[1].bytes
    target = parse_target(f"{exported.path}@INFERENCE_NUM_THREADS=1")
    request = _load(target, find_deployment(target, classifies=True), threads=2)
    assert request.get_compiled_model().get_property("INFERENCE_NUM_THREADS") == 1
    for setting, message in (
        ("INFERENCE_PRECISION_HINT=f7", "INFERENCE_PRECISION_HINT"),
        ("format=onnx", "only OpenVINO"),
    ):
        with pytest.raises(UsageError, match=message):
            measure_forwards([parse_target(f"{exported.path}@{setting}")], tokens=16, blocks=2, threads=1)


def make_pruned(directory: Path, *, masked: bool) -> Run:
    """Wanda, elastic ranks, widths and heads, in one encoder."""
    recipe = (
        write_recipe(directory, extra=SPARSITY).read_text().replace("masked = false", f"masked = {json.dumps(masked)}")
    )
    (directory / "recipe.toml").write_text(recipe)
    run, calibrated = Run(directory / "run"), []

    def watched(texts: Sequence[str], tokenizer: Any) -> torch.Tensor:
        calibrated.extend(texts)
        return token_stream(texts, tokenizer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.calibration.token_stream", watched)
        run_recipe(read_recipe(directory / "recipe.toml"), run.path)
    # What it reads, without the label behind it.
    assert set(calibrated) == {row.prompt for row in read_rows(run.task, "train")}
    search(run, SETTINGS, BestRule(accuracy_delta=0.5))
    return run


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """With adapters under the mask."""
    return make_pruned(tmp_path_factory.mktemp("pruned"), masked=True)


def test_a_pruned_encoder_keeps_its_zeros_to_the_end(pruned: Run, tmp_path: Path) -> None:
    """The merge is exact, and no zero is lost in any format, whatever was cut."""
    assert open_subnet(pruned.search / "best.json").subnet.merge.default == "masked"
    assert {"classes", "head_seed"} <= open_artefact(pruned.sparse, kind="sparse").manifest.details.keys()
    exported = export_subnet(
        pruned.search / "best.json", ExportRequest(output=tmp_path / "export", formats=("hf", "openvino", "onnx"))
    )
    report = exported.report
    assert merge_error(pruned.search / "best.json", exported.path / "model", head="classifier") == 0.0
    assert {check.format: check.zeros == check.pruned > 0 for check in report.zeros} == {
        "model": True,
        "openvino": True,
        "onnx": True,
    }
    assert report.certificate is not None
    assert report.certificate.zeros >= report.zeros[0].pruned
    directories = [exported.path, exported.path / "openvino", exported.path / "onnx"]
    rows = score_models(directories, tasks=parse_tasks(str(pruned.task)), split="test", precision="fp32").scores
    assert rows[0].sparsity == pytest.approx(rows[1].sparsity, abs=0.01)
    assert rows[0].loss == pytest.approx(rows[1].loss, abs=0.02)
    assert rows[0].loss == pytest.approx(rows[2].loss, abs=1e-4)
    # Away from its manifest, which would refuse it first.
    broken = shutil.copytree(exported.path / "openvino", tmp_path / "broken")
    (broken / "openvino_model.xml").write_text("<net")
    with pytest.raises(ModelUnsupported, match="cannot compile"):
        score_models([broken], tasks=parse_tasks(str(pruned.task)), split="test", precision="fp32")


@pytest.mark.parametrize("weights", mostly_slow(["int8", "int4", "bf16"], fast=["int8"]))
def test_the_sparse_kernel_runs_a_classifier(pruned: Run, tmp_path: Path, weights: str) -> None:
    """Every pruned matrix is packed or has a reason not to be, and the packed file says what the stock one says."""
    few, many = [np.array([5]), np.array([7, 11])], fixed_blocks(tiny_tokenizer(), vocabulary=VOCABULARY)
    logits = {}
    for kernel in ("stock", "sparse"):
        request = ExportRequest(
            output=tmp_path / kernel,
            formats=("openvino",),
            weight_format=weights,
            sparse_kernels=("openvino",) if kernel == "sparse" else (),
            verify="strict" if kernel == "sparse" else "off",
        )
        exported = export_subnet(pruned.search / "best.json", request)
        report = exported.report
        assert (not report.packings) == (kernel == "stock")
        logits[kernel] = openvino_class_logits(exported.path / "openvino", [*few, *many], config=FLOAT32_CPU)
    packed, kept = {layer.path for layer in report.packings["openvino"].layers}, report.packings["openvino"].kept
    masked = load_masks(pruned.sparse / MASK_FILE).keys()
    assert packed | kept.keys() >= masked
    # How narrow the narrowest is, the search decides, and so the rounding of the machine.
    assert weights == "int4" or all("save too little" in kept[path] for path in masked - packed)
    assert packed & masked
    stock, sparse = (np.concatenate(logits[kernel]) for kernel in ("stock", "sparse"))
    largest = np.abs(stock).max()
    # Below three rows activations keep 16 bits. Above they are rounded to 8, as OpenVINO does by default; the weights
    # are the same.
    np.testing.assert_allclose(sparse[: len(few)], stock[: len(few)], atol=1e-3 * largest)
    np.testing.assert_allclose(sparse[len(few) :], stock[len(few) :], atol=0.02 * largest)
    board = score_models(
        [tmp_path / "stock" / "openvino", tmp_path / "sparse" / "openvino"],
        tasks=parse_tasks(str(pruned.task)),
        split="test",
        precision="fp32",
    )
    # Of fifteen rows one may lie so near the boundary that the rounding of activations decides.
    stock_right, sparse_right = (score.accuracy * score.n for score in board.scores)
    assert abs(stock_right - sparse_right) <= 1 + 1e-6
    assert board.scores[0].loss == pytest.approx(board.scores[1].loss, abs=0.02)
    times = measure_forwards([Target(tmp_path / "stock"), Target(tmp_path / "sparse")], tokens=16, blocks=2, threads=1)
    assert (times[1].bytes < times[0].bytes) == bool(packed)
    assert ("shearling_runtime" in (tmp_path / "sparse" / "README.md").read_text()) == bool(packed)


def test_a_pruned_encoder_is_exported_without_adapter(pruned: Run, tmp_path: Path) -> None:
    request = ExportRequest(
        output=tmp_path / "export",
        formats=("hf", "openvino", "peft"),
        weight_format="int8",
        sparse_kernels=("openvino",),
    )
    report = export_frozen(pruned.sparse, request).report
    assert {layer.path for layer in report.packings["openvino"].layers} >= load_masks(pruned.sparse / MASK_FILE).keys()
    assert {check.format: check.zeros == check.pruned > 0 for check in report.zeros} == {
        "model": True,
        "openvino": True,
    }


def test_plain_adapters_of_a_pruned_encoder_stay_apart(tmp_path: Path) -> None:
    """The frozen weights keep their zeros, and the low-rank factors beside them their precision."""
    run = make_pruned(tmp_path, masked=False)
    best = run.search / "best.json"
    exported = export_subnet(
        best, ExportRequest(output=run.export, formats=("hf", "openvino", "onnx", "peft"), weight_format="int8")
    )
    report = exported.report
    assert report.merge == "separate"
    assert {check.format for check in report.zeros if check.pruned > 0} == {"openvino", "onnx"}
    assert sorted(path.name for path in exported.path.iterdir() if path.is_dir()) == ["onnx", "openvino"]
    initializers = onnx.load(exported.path / "onnx" / "model.onnx", load_external_data=False).graph.initializer
    factors = [tensor for tensor in initializers if "lora_a" in tensor.name or "lora_b" in tensor.name]
    assert len(factors) == 2 * len(open_subnet(best).subnet.ranks)
    assert {tensor.data_type for tensor in factors} == {onnx.TensorProto.FLOAT}
    for call in (export_subnet, plan_subnet):
        with pytest.raises(UsageError, match="nothing is left to write"):
            call(best, ExportRequest(output=tmp_path / "nothing", formats=("hf", "peft")))
    assert not (tmp_path / "nothing").exists()


@needs_headers
def test_onnx_runtime_runs_a_packed_classifier(pruned: Run, tmp_path: Path) -> None:
    blocks, logits = fixed_blocks(tiny_tokenizer(), vocabulary=VOCABULARY), {}
    for kernel in ("stock", "sparse"):
        request = ExportRequest(
            output=tmp_path / kernel,
            formats=("onnx",),
            weight_format="int8",
            sparse_kernels=("onnx",) if kernel == "sparse" else (),
            verify="strict" if kernel == "sparse" else "off",
        )
        exported = export_subnet(pruned.search / "best.json", request)
        logits[kernel] = np.concatenate(onnx_class_logits(exported.path / "onnx", blocks))
    report = exported.report
    assert {layer.path for layer in report.packings["onnx"].layers} >= load_masks(pruned.sparse / MASK_FILE).keys()
    np.testing.assert_allclose(logits["sparse"], logits["stock"], atol=0.02 * np.abs(logits["stock"]).max())


def test_calibration_windows_fit_the_positions(tmp_path: Path) -> None:
    """BERT has a table of positions: a longer window would end in an error of torch, after the base was made."""
    recipe = write_recipe(tmp_path, extra=SPARSITY.replace("seq_len = 16", "seq_len = 300"))
    with pytest.raises(RecipeInvalid, match="300 tokens, the model has 256 positions") as caught:
        run_recipe(read_recipe(recipe), tmp_path / "run")
    assert caught.value.where == "sparsity.calibration.seq_len"


def test_a_gguf_file_gets_no_head(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    shutil.rmtree(tmp_path / "source")
    write_gguf(tmp_path / "source", FAMILIES["llama"](), tiny_tokenizer())
    with pytest.raises(ModelUnsupported, match="no head that classifies"):
        run_recipe(read_recipe(recipe), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_classifier_has_no_teacher(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    recipe.write_text(f"{recipe.read_text()}\n[train.teacher]\nanswer = 1\n")
    with pytest.raises(RecipeInvalid, match="no language to keep"):
        read_recipe(recipe)


def test_models_that_cannot_classify_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    refused = {
        "no sequence classifier": CohereConfig(),
        "an encoder-decoder": BartConfig(),
        "no list of transformer layers": SqueezeBertConfig(),
    }
    for message, config in refused.items():
        config.save_pretrained(tmp_path / "source")
        with pytest.raises(ModelUnsupported, match=message):
            run_recipe(read_recipe(recipe), tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_a_classifier_must_be_trained(tmp_path: Path) -> None:
    text = write_recipe(tmp_path, extra=SPARSITY).read_text()
    (tmp_path / "recipe.toml").write_text(text[: text.index("[adapter]")])
    with pytest.raises(RecipeInvalid, match="its head is new"):
        read_recipe(tmp_path / "recipe.toml")
