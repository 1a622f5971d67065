"""The export stage on a tiny run: its artefact, its refusals, its gates, and the same bytes twice."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import export.formats.huggingface
import export.formats.openvino
import export.merged_model
from export.__main__ import export as command
from export.formats.openvino import openvino_logits
from export.merge import merge
from export.merged_model import _sparsity_facts, prepare_model
from export.plan import plan_frozen, plan_subnet
from export.quantization.settings import Quantization
from export.reporting.report import ExportReport
from export.request import ExportRequest
from export.screen import show_export
from export.stage import export_frozen, export_subnet
from export.verification.zeros import read_huggingface
from serve.runtimes.deployment import find_deployment
from serve.runtimes.runtime import Decoding, RunOptions, load_runtime
from shearling.artefact import list_files, open_artefact
from shearling.elastic.mask import MASK_FILE, load_masks
from shearling.elastic.sub_adapter import load_sub_adapter
from shearling.elastic.super_network import assemble_super_network
from shearling.errors import (
    ArtefactCorrupt,
    ArtefactMismatch,
    MergeRefused,
    OutputExists,
    PackageMissing,
    ParityFailed,
    SparsityLost,
    UsageError,
)
from shearling.kernel.build import build_onnx_runtime_library
from shearling.model.checkpoint import load_model, save_model
from shearling.model.layers import find_layers
from shearling.run import Run
from shearling.strict_json import read_document
from shearling.target import Target
from tests.support.onnxruntime_headers import needs_headers
from tests.support.own_memory import in_own_memory
from tests.support.stage_commands import run_stage
from tests.support.tiny_models import FAMILIES, word_piece_tokenizer
from tests.support.tiny_subnets import run_with_best
from train.base.artefact import import_base

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]  # torchao warns while optimum imports it, torch.export of its own tree functions
FAST = ("hf", "peft")


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    return run_with_best(tmp_path_factory.mktemp("masked"), masked=True)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return run_with_best(tmp_path_factory.mktemp("plain"), masked=False)


def request_for(path, **options):
    return ExportRequest(**{"output": path, "formats": FAST, **options})


def prepared(plan, directory):
    checkpoint = directory / "merged"
    checkpoint.mkdir()
    return prepare_model(plan, checkpoint=checkpoint)


def file_hashes(artefact, *parts):
    files = artefact.manifest.files
    return {name: entry.sha256 for name, entry in files.items() if name.startswith(parts)}


@pytest.mark.slow
def test_two_exports_are_identical_and_prove_their_parents(masked, tmp_path, fresh_graphs):
    formats = ("hf", "peft", "openvino")
    first = export_subnet(masked.path / "best.json", request_for(tmp_path / "first", formats=formats))
    second = export_subnet(masked.path / "best.json", request_for(tmp_path / "second", formats=formats, verify="off"))
    parts = ("model/", "adapter/", "openvino/")
    assert file_hashes(first.artefact, *parts) == file_hashes(second.artefact, *parts)
    assert first.artefact.manifest.parents == {
        "sparse": open_artefact(masked.sparse, kind="sparse").sha256,
        "super_adapter": open_artefact(masked.super_adapter, kind="super_adapter").sha256,
    }
    page = (first.path / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "<script src" not in page
    assert (first.path / "README.md").read_text().startswith("---\n")


def test_a_base_in_which_nothing_is_pruned_is_exported_and_said_to_be_so(tmp_path):
    run = run_with_best(tmp_path, sparsity={"ratio": 0.0})
    request = request_for(tmp_path / "export", formats=("hf", "openvino"), weight_format="int8")
    exported = export_subnet(run.path / "best.json", replace(request, sparse_kernels=("openvino",)))
    certificate = exported.report.certificate
    assert (certificate.modules, certificate.zeros, certificate.sparsity) == (0, 0, 0.0)
    assert {(check.zeros, check.pruned) for check in exported.report.zeros} == {(0, 0)}
    said = "no mask prunes anything"
    assert said in (exported.path / "README.md").read_text()
    assert said in (exported.path / "report.html").read_text()
    assert said in screen_of(exported)


def test_every_file_is_hashed_once_for_an_export(masked, tmp_path, monkeypatch):
    """Parents once when they are opened, the export's own files once when it is sealed; nothing is read back."""
    hashed = Counter()
    original = hashlib.file_digest

    def counting(stream, name):
        hashed[stream.name.replace(".export.partial", "export")] += 1
        return original(stream, name)

    monkeypatch.setattr(hashlib, "file_digest", counting)
    exported = export_subnet(masked.path / "best.json", request_for(tmp_path / "export"))
    parents = [masked.sparse, masked.super_adapter]
    expected = [path for root in (*parents, exported.path) for path in root.rglob("*") if path.is_file()]
    assert hashed == Counter(map(str, expected))
    assert read_document(exported.path / "report.json", ExportReport) == exported.report
    assert open_artefact(exported.path, kind="export") == exported.artefact


def test_a_masked_adapter_loads_exactly_with_its_mask(masked, tmp_path):
    exported = export_subnet(masked.path / "best.json", request_for(tmp_path / "export"))
    ids = torch.tensor([[5, 17, 33, 60, 2, 9]])
    with torch.inference_mode():
        adapted = in_own_memory(load_sub_adapter(masked.sparse, exported.path / "adapter"))(ids).logits
        merged = in_own_memory(load_model(exported.path / "model"))(ids).logits
    assert torch.equal(adapted, merged)


def test_a_plain_adapter_stays_separate_and_loads_in_stock_peft(plain, tmp_path):
    from peft import PeftModel

    exported = export_subnet(
        plain.path / "best.json",
        request_for(tmp_path / "export", formats=("hf", "peft", "openvino", "onnx"), weight_format="int8"),
    )
    report = exported.report
    assert (report.merge, report.exact) == ("separate", True)
    assert not (exported.path / "model").exists()
    assert {check.format for check in report.zeros} == {"base", "openvino", "onnx"}
    assert all(check.zeros == check.pruned > 0 for check in report.zeros)
    ids = torch.tensor([[5, 17, 33, 60, 2, 9]])
    with torch.inference_mode():
        stock = PeftModel.from_pretrained(load_model(exported.path / "base"), exported.path / "adapter")(ids).logits
        ours = load_sub_adapter(plain.sparse, exported.path / "adapter")(ids).logits
    torch.testing.assert_close(stock, ours, atol=1e-5, rtol=1e-5)


@pytest.fixture
def copied(masked, tmp_path):
    return Run(shutil.copytree(masked.path, tmp_path / "run"))


@pytest.mark.parametrize("name", ["train.jsonl", "validation.jsonl"])
def test_rows_that_integers_are_rounded_and_judged_on_are_verified(copied, tmp_path, name):
    document, rows = copied.path / "best.json", copied.task / name
    request = request_for(tmp_path / "export", formats=("openvino",), weight_format="int4")
    (copied.task / "test.jsonl").unlink()
    plan_subnet(document, request)
    rows.write_text(rows.read_text().replace("Report", "report", 1))
    with pytest.raises(ArtefactCorrupt) as caught:
        plan_subnet(document, request)
    assert caught.value.where == str(rows)
    with pytest.raises(ArtefactCorrupt):
        plan_frozen(copied.sparse, request)
    # Without rounding nobody reads them.
    plan_subnet(document, replace(request, weight_format="fp32"))


def test_calibration_rows_that_are_not_read_need_not_be_intact(copied, tmp_path):
    (copied.task / "train.jsonl").write_text("")
    text = tmp_path / "text.txt"
    text.write_text("The lazy fox is fast. " * 50)
    quantization = Quantization(dataset=(str(text),))
    request = request_for(tmp_path / "export", formats=("openvino",), weight_format="int4", quantization=quantization)
    assert plan_subnet(copied.path / "best.json", request).quantization is not None


def test_the_task_of_another_training_is_refused_where_it_would_judge(copied, tmp_path):
    manifest = copied.task / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"created"', ' "created"'))
    request = request_for(tmp_path / "export", formats=("openvino",), weight_format="int8")
    with pytest.raises(ArtefactMismatch, match="not the one that the adapter was trained on"):
        plan_subnet(copied.path / "best.json", request)
    shutil.rmtree(copied.task)
    plan_subnet(copied.path / "best.json", request)


def test_rows_that_nobody_reads_need_not_be_there(copied, tmp_path):
    request = request_for(tmp_path / "export", formats=("openvino",), weight_format="int8")
    rows = copied.task / "validation.jsonl"
    rows.write_text("".join(reversed(rows.read_text().splitlines(keepends=True))))
    plan_subnet(copied.path / "best.json", replace(request, verify="off"))
    with pytest.raises(ArtefactCorrupt):
        plan_subnet(copied.path / "best.json", request)
    rows.unlink()
    plan_subnet(copied.path / "best.json", replace(request, verify="off"))


def test_merges_follow_the_training(masked, plain, tmp_path):
    for mode in ("separate", "dense"):
        with pytest.raises(MergeRefused) as caught:
            export_subnet(masked.path / "best.json", request_for(tmp_path / "export", merge=mode))
        assert caught.value.exit_code == 2
    with pytest.raises(MergeRefused, match="--allow-approximate"):
        export_subnet(plain.path / "best.json", request_for(tmp_path / "export", merge="masked"))
    approximate = export_subnet(
        plain.path / "best.json", request_for(tmp_path / "export", merge="masked", allow_approximate=True)
    )
    report = approximate.report
    assert not report.exact
    assert report.parity[0].parity.max_abs > 1e-4
    dense = export_subnet(plain.path / "best.json", request_for(tmp_path / "dense", merge="dense"))
    assert dense.report.certificate is None


@pytest.mark.parametrize("mode", ["masked", "dense", "separate"])
def test_what_is_exported_says_of_itself_what_it_is(masked, plain, tmp_path, mode):
    run = masked if mode == "masked" else plain
    plan = plan_subnet(run.path / "best.json", request_for(tmp_path / "export", merge=mode))
    made = prepared(plan, tmp_path)
    subject, masks = made.subject, load_masks(run.sparse / MASK_FILE)
    pruned, weights = (sum(int(f(mask).sum()) for mask in masks.values()) for f in (torch.logical_not, torch.ones_like))
    if mode == "dense":
        # The zeros of what is adapted are gone, and nothing is promised of the others.
        assert (subject.masks, subject.sparsity) == (None, {})
    else:
        assert subject.masks.keys() == masks.keys()
        assert subject.sparsity == {
            "method": "magnitude",
            "pattern": "unstructured-per-row",
            "modules": str(len(masks)),
            "pruned": str(pruned),
            "share": f"{pruned / weights:.6f}",
        }
    assert subject.separate == (mode == "separate")
    assert (subject.adapter.masks is not None) == (mode == "masked")
    assert subject.model.config.use_cache
    frozen = load_model(run.sparse)
    sizes = {path: sum(frozen.get_submodule(path).weight.shape) for path in masks}
    ranks = json.loads((run.path / "best.json").read_text())["ranks"]
    assert made.adapter_params == sum(rank * sizes[path] for path, rank in ranks.items())
    assert made.merge_check.parity.max_abs <= 1e-5
    assert made.merge_check.gate.max_abs is not None


def test_an_approximate_merge_is_measured_and_not_limited(plain, tmp_path):
    request = request_for(tmp_path / "export", merge="masked", allow_approximate=True)
    made = prepared(plan_subnet(plain.path / "best.json", request), tmp_path)
    assert made.subject.masks is not None
    assert made.subject.adapter.masks is None
    assert made.merge_check.gate.max_abs is None
    assert made.merge_check.violations == ()


def test_the_cache_is_on_whatever_training_left_in_the_configuration(masked, tmp_path, monkeypatch):
    def without_cache(*artefacts, **options):
        network = assemble_super_network(*artefacts, **options)
        network.model.config.use_cache = False
        return network

    monkeypatch.setattr(export.merged_model, "assemble_super_network", without_cache)
    made = prepared(plan_subnet(masked.path / "best.json", request_for(tmp_path / "export")), tmp_path)
    assert made.subject.model.config.use_cache


def test_a_merge_of_another_size_than_described_is_refused(masked, tmp_path, monkeypatch):
    def larger(*arguments, **options):
        model = merge(*arguments, **options)
        model.register_parameter("left_over", torch.nn.Parameter(torch.zeros(3)))
        return model

    monkeypatch.setattr(export.merged_model, "merge", larger)
    with pytest.raises(ParityFailed):
        prepared(plan_subnet(masked.path / "best.json", request_for(tmp_path / "export")), tmp_path)


def test_a_zero_that_was_revived_while_loading_is_noticed(masked, tmp_path, monkeypatch):
    def revived(path, **options):
        model = load_model(path, **options)
        with torch.no_grad():
            next(iter(find_layers(model).linears().values())).weight.fill_(1)
        return model

    monkeypatch.setattr(export.merged_model, "load_model", revived)
    with pytest.raises(ArtefactMismatch, match="pruned entries are nonzero"):
        prepared(plan_frozen(masked.sparse, request_for(tmp_path / "export")), tmp_path)


def test_pruned_weights_are_counted_and_not_those_that_stay(masked):
    masks = {"a": torch.tensor([[True, False], [False, False]]), "b": torch.ones(1, 4, dtype=torch.bool)}
    facts = _sparsity_facts(masks, open_artefact(masked.sparse, kind="sparse"))
    assert (facts["modules"], facts["pruned"], facts["share"]) == ("2", "3", "0.375000")


def test_an_existing_output_is_left_alone_unless_forced(masked, tmp_path):
    request = request_for(tmp_path / "export", formats=("peft",))
    first = export_subnet(masked.path / "best.json", request)
    with pytest.raises(OutputExists):
        export_subnet(masked.path / "best.json", request)
    with pytest.raises(OutputExists):
        plan_subnet(masked.path / "best.json", request)
    assert open_artefact(first.path, kind="export").sha256 == first.artefact.sha256
    export_subnet(masked.path / "best.json", request_for(tmp_path / "export", formats=("peft",), force=True))


@pytest.mark.parametrize(
    ("shift", "weight_format", "reason"),
    [
        (0.01, "fp32", r"Δlogit.* exceeds 0\.001"),
        (float("nan"), "fp32", "NaN or infinity"),
        (float("nan"), "int8", "NaN or infinity"),
    ],
)
def test_a_broken_gate_rejects_the_export_and_keeps_its_files(
    masked, tmp_path, monkeypatch, shift, weight_format, reason
):
    options = {"formats": ("openvino",), "weight_format": weight_format}

    def shifted_logits(directory, blocks, *, config, obstacle):
        logits = list(openvino_logits(directory, blocks, config=config, obstacle=obstacle))
        logits[0][0, 0] += shift
        return logits

    monkeypatch.setattr(export.formats.openvino, "openvino_logits", shifted_logits)
    with pytest.raises(ParityFailed, match=reason) as caught:
        export_subnet(masked.path / "best.json", request_for(tmp_path / "export", **options))
    assert caught.value.exit_code == 1
    assert not (tmp_path / "export").exists()
    assert (tmp_path / "export.rejected" / "report.html").is_file()
    accepted = export_subnet(masked.path / "best.json", request_for(tmp_path / "export", **options, verify="warn"))
    assert accepted.report.violations
    card = (accepted.path / "README.md").read_text()
    assert "## Verified" not in card
    assert f"## Broken gates\n\n- {accepted.report.violations[0]}" in card
    assert "--verify warn" in card
    assert read_document(accepted.path / "report.json", ExportReport).violations == accepted.report.violations


def no_hard_links(source, destination):
    """What exFAT, shared folders of virtual machines and mounted buckets say."""
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), source, None, destination)


def test_a_file_system_without_hard_links_takes_every_export(masked, tmp_path, monkeypatch):
    linked = export_subnet(masked.path / "best.json", request_for(tmp_path / "linked", formats=("hf",)))
    monkeypatch.setattr(os, "link", no_hard_links)
    copied = export_subnet(masked.path / "best.json", request_for(tmp_path / "copied", formats=("hf",)))
    assert file_hashes(copied.artefact, "model/") == file_hashes(linked.artefact, "model/")


def test_a_rejected_export_replaces_an_earlier_one_and_nothing_else(masked, tmp_path, monkeypatch):
    def reject():
        with pytest.raises(SparsityLost) as caught:
            export_subnet(masked.path / "best.json", request_for(tmp_path / "export", formats=("hf",)))
        return Path(caught.value.where)

    def lost_zeros(directory, shapes):
        return ((path, np.zeros_like(zeros)) for path, zeros in read_huggingface(directory, shapes))

    monkeypatch.setattr(os, "link", no_hard_links)
    monkeypatch.setattr(export.formats.huggingface, "read_huggingface", lost_zeros)
    first = reject()
    assert first == tmp_path / "export.rejected"
    files = list_files(first)
    assert {"report.html", "model/model.safetensors"} < set(files)
    assert reject() == first
    assert list_files(first) == files
    (first / "model" / "thesis.txt").write_text("years of work")
    second = tmp_path / "export.rejected-2"
    assert reject() == reject() == second
    assert list_files(second) == files
    assert list_files(first) == sorted([*files, "model/thesis.txt"])
    assert not (tmp_path / "export").exists()


def test_a_tokenizer_that_is_served_otherwise_than_it_was_measured_rejects_the_export(tmp_path):
    tokenizer = word_piece_tokenizer(handle_chinese_chars=False)
    save_model(FAMILIES["llama"](), tokenizer, tmp_path / "source")
    base = import_base(tmp_path / "source", tmp_path / "base", model_id="random/llama").path
    with pytest.raises(ParityFailed, match=r"its tokenizer reads .* such as '你好，世界"):
        export_frozen(base, request_for(tmp_path / "export", formats=("openvino",)))
    accepted = export_frozen(base, request_for(tmp_path / "export", formats=("openvino", "onnx"), verify="warn"))
    (check,) = read_document(accepted.path / "report.json", ExportReport).tokenizers
    assert (check.candidate, accepted.report.violations) == ("openvino", [f"openvino: {check.violation}"])
    for said in (screen_of(accepted), (accepted.path / "report.html").read_text()):
        assert "你好，世界" in said
    assert "你好，世界" in (accepted.path / "README.md").read_text()


def test_another_base_of_the_same_shape_is_refused(masked, plain, tmp_path):
    """Invariant 40."""
    document = json.loads((masked.path / "best.json").read_text())
    document["base"]["path"] = f"../../{plain.path.parent.name}/run/sparse"
    swapped = masked.path / "swapped.json"
    swapped.write_text(json.dumps(document))
    with pytest.raises(ArtefactMismatch) as caught:
        export_subnet(swapped, request_for(tmp_path / "export"))
    assert caught.value.exit_code == 3


def test_an_unadapted_model_exports_as_it_is(masked, tmp_path):
    exported = export_frozen(masked.sparse, request_for(tmp_path / "sparse"))
    assert not (exported.path / "adapter").exists()
    with pytest.raises(UsageError):
        export_frozen(masked.sparse, request_for(tmp_path / "other", merge="dense"))


def test_a_sparse_export_proves_itself_and_reports_every_byte(masked, tmp_path):
    options = {"formats": ("openvino",), "weight_format": "int8", "sparse_kernels": ("openvino",)}
    first = export_subnet(masked.path / "best.json", request_for(tmp_path / "first", **options))
    second = export_subnet(masked.path / "best.json", request_for(tmp_path / "second", **options, verify="off"))
    assert file_hashes(first.artefact, "openvino/") == file_hashes(second.artefact, "openvino/")
    report = first.report
    # What is pruned, and the head, which is not.
    assert {layer.path for layer in report.packings["openvino"].layers} == {
        "model.embed_tokens",
        *(module.name for module in report.certificate.by_module),
    }
    assert report.packings["openvino"].bytes_after < report.packings["openvino"].bytes_before
    assert [check.format for check in report.zeros] == ["openvino"]
    assert report.zeros[0].zeros == report.zeros[0].pruned > 0
    assert report.violations == []
    assert first.artefact.manifest.details["kernels"] == {"openvino": "sparse"}
    assert first.artefact.manifest.details["openvino_operators"] == report.packings["openvino"].operators
    assert (report.kernels, list(report.packings)) == ({"openvino": "sparse"}, ["openvino"])
    assert "What the sparse kernel reads" in (first.path / "report.html").read_text()
    assert "shearling_runtime.pipeline(" in (first.path / "README.md").read_text()


@pytest.mark.slow
@needs_headers
def test_a_sparse_onnx_export_proves_itself_runs_and_says_every_kernel(masked, tmp_path):
    options = {"formats": ("openvino", "onnx"), "weight_format": "int8"}
    exported = export_subnet(
        masked.path / "best.json", request_for(tmp_path / "export", sparse_kernels=("onnx",), **options)
    )
    report = exported.report
    assert report.kernels == {"openvino": "stock", "onnx": "sparse"}
    assert list(report.packings) == ["onnx"]
    assert {layer.path for layer in report.packings["onnx"].layers} == {
        module.name for module in report.certificate.by_module
    }
    assert [(check.format, check.zeros) for check in report.zeros] == [
        (name, report.zeros[0].pruned) for name in ("openvino", "onnx")
    ]
    assert report.violations == []
    assert exported.artefact.manifest.details["onnx_operators"] == report.packings["onnx"].operators
    assert "What the sparse kernel reads in onnx/" in (exported.path / "report.html").read_text()
    card = (exported.path / "README.md").read_text()
    assert "- openvino: stock kernel\n- onnx: sparse kernel\n" in card
    assert "shearling_runtime.session_options()" in card
    screen = Console(width=200)
    with screen.capture() as shown:
        screen.print(show_export(exported).screen)
    assert "kernels: openvino stock, onnx sparse" in shown.get()
    runtime = load_runtime(find_deployment(Target(exported.path, format="onnx")), RunOptions(threads=1))
    assert len(runtime.generate([[5, 6, 7]], Decoding(max_new_tokens=4)).token_ids) == 4


def test_without_headers_a_sparse_onnx_export_is_refused_at_once(masked, tmp_path, monkeypatch):
    monkeypatch.setenv("ONNXRUNTIME_INCLUDE", str(tmp_path))
    build_onnx_runtime_library.cache_clear()
    with pytest.raises(PackageMissing, match="libonnxruntime-dev") as caught:
        plan_subnet(
            masked.path / "best.json",
            request_for(tmp_path / "export", formats=("onnx",), weight_format="int8", sparse_kernels=("onnx",)),
        )
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    "options", [{"weight_format": "fp32"}, {"weight_format": "fp16"}, {"weight_format": "int8", "formats": ("hf",)}]
)
@pytest.mark.parametrize("name", ["openvino", "onnx"])
def test_the_sparse_kernel_needs_weights_that_it_reads(masked, tmp_path, options, name):
    with pytest.raises(UsageError, match=f"the sparse kernel reads .* in {name};"):
        export_subnet(
            masked.path / "best.json",
            request_for(tmp_path / "export", **{"sparse_kernels": (name,), "formats": (name,), **options}),
        )


def test_int4_is_rounded_on_the_rows_of_the_run_and_the_checkpoint_is_not(tmp_path):
    """The widths of this family have groups of 16, but for the inner one, which stays in int8."""
    run = run_with_best(tmp_path, family="llama", masked=True)
    quantization = Quantization(samples=6)
    options = {"formats": ("hf", "openvino", "onnx"), "weight_format": "int4", "quantization": quantization}
    exported = export_subnet(run.path / "best.json", request_for(tmp_path / "export", **options))
    found = exported.report.quantization
    assert found is not None
    assert (found.preset, found.dataset, found.samples, found.matrices) == ("balanced", ("task",), 6, 18)
    assert 0 < found.layer_error < 0.05
    assert {check.format for check in exported.report.zeros} == {"model", "openvino", "onnx"}
    assert all(check.zeros == check.pruned > 0 for check in exported.report.zeros)
    assert "18 matrices in groups of 64, on task" in screen_of(exported)
    assert "18 matrices rounded on task (balanced)" in (exported.path / "README.md").read_text()
    plain = export_subnet(run.path / "best.json", request_for(tmp_path / "plain", formats=("hf",)))
    assert file_hashes(exported.artefact, "model/") == file_hashes(plain.artefact, "model/")


def test_a_screen_speaks_of_zeros_only_where_files_were_read(masked, tmp_path):
    unread = export_subnet(masked.path / "best.json", request_for(tmp_path / "export", verify="off"))
    assert "every format holds them" not in screen_of(unread)
    assert "the files were not looked at" in screen_of(unread)


def screen_of(exported):
    """In one line: a caption is as wide as its table."""
    console = Console(width=400, record=True)
    console.print(show_export(exported).screen)
    return " ".join(console.export_text().split())


def run_command(*arguments, cwd):
    return run_stage("export", *arguments, directory=cwd)


def test_dry_run_verifies_and_writes_nothing(masked):
    before = sorted(path.name for path in masked.path.iterdir())
    done = run_command("--subnet", masked.path / "best.json", "--dry-run", "--json", cwd=Path.cwd())
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["merge"] == "masked"
    assert sorted(path.name for path in masked.path.iterdir()) == before


def test_a_directory_is_exported_alike_from_within_and_from_elsewhere(tmp_path, monkeypatch):
    run = run_with_best(tmp_path, family="llama", masked=True)
    options = {"formats": "openvino", "weight_format": "int4", "num_samples": 6, "verify": "warn"}

    def proven(result):
        report = result.data["report"]
        report["quantization"].pop("seconds")
        texts = [check["text"] for check in report["parity"]]
        return report["quantization"], texts, report["tasks"], report["lineage"], report["source"]

    elsewhere = proven(command(base=run.sparse, output=tmp_path / "elsewhere", **options))
    assert elsewhere[0]["preset"] == "balanced"
    monkeypatch.chdir(run.sparse)
    within = command(base=Path(), **options)
    assert within.data["output"] == str(run.path / "sparse-export")
    assert proven(within) == elsewhere
    monkeypatch.chdir(run.path / "sparse-export")
    replaced = command(base=run.sparse, output=Path(), formats="hf", force=True)
    assert replaced.data["output"] == str(run.path / "sparse-export")
    assert set(open_artefact(run.path / "sparse-export", kind="export").manifest.files) >= {"model/config.json"}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ((), 2),
        (("--subnet", "absent.json"), 3),
        (("--subnet", "absent.json", "--weight-format", "int3"), 2),
        (("--subnet", "absent.json", "--formats", "gguf"), 2),
        (("--subnet", "absent.json", "--sparse-kernel", "openvino"), 2),
        (("--subnet", "absent.json", "--sparse-kernel", "openvino,onnx"), 2),
        (("--subnet", "absent.json", "--sparse-kernel", "dense"), 2),
        (("--subnet", "absent.json", "--weight-format", "int8", "--sparse-kernel", "hf"), 2),
        (("--subnet", "absent.json", "--base", "absent"), 2),
        (("--subnet", "absent.json", "--weight-format", "int4", "--group-size", "48"), 2),
        (("--subnet", "absent.json", "--weight-format", "int4", "--quantization", "worst"), 2),
    ],
)
def test_bad_requests_end_with_their_exit_code(tmp_path, arguments, code):
    done = run_command(*arguments, cwd=tmp_path)
    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_help_does_not_load_torch():
    # tests/docs/test_pages.py measures that help is there at once.
    probe = "import sys, export.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0
