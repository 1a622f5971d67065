"""What report, page, card and screen claim of an export: what was done, and nothing that was not measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from rich.console import Console

from export.formats import huggingface, onnx
from export.formats.export_format import Blocks
from export.formats.onnx import onnx_logits
from export.plan import plan_frozen
from export.quantization import nncf_rounding
from export.quantization.settings import Quantization
from export.reporting.report import ExportReport
from export.request import ExportRequest
from export.screen import show_export
from export.stage import FinishedExport, export_frozen, export_subnet
from export.verification import parity_check
from export.verification.parity import LogitsInTurn
from export.verification.zeros import read_huggingface
from shearling.elastic.mask import MASK_FILE, load_masks
from shearling.errors import SparsityLost, UsageError
from shearling.model.checkpoint import load_model
from shearling.run import Run
from shearling.strict_json import read_document
from tests.support.tiny_models import save_tiny
from tests.support.tiny_subnets import run_with_best
from train.base.artefact import import_base

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]  # optimum's and torch.export's own


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_with_best(tmp_path_factory.mktemp("plain"), masked=False)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("base")
    source = save_tiny("llama_tied_gqa", directory / "source")
    return import_base(source, directory / "base", model_id="tiny/llama", dtype="bfloat16").path


def request_for(path: Path, *formats: str, **options: Any) -> ExportRequest:
    return ExportRequest(output=path, formats=formats, **options)


def card_of(exported: FinishedExport) -> str:
    return (exported.path / "README.md").read_text(encoding="utf-8")


def page_of(exported: FinishedExport) -> str:
    return (exported.path / "report.html").read_text(encoding="utf-8")


def screen_of(exported: FinishedExport, *, width: int = 80) -> str:
    console = Console(width=width)
    with console.capture() as captured:
        console.print(show_export(exported).screen)
    return captured.get()


def words_of(text: str) -> str:
    """In one line: a caption is as wide as its table."""
    return " ".join(text.split())


def test_what_was_not_measured_is_not_called_verified(plain: Run, base: Path, tmp_path: Path) -> None:
    unread = export_subnet(plain.path / "best.json", request_for(tmp_path / "off", "hf", merge="dense", verify="off"))
    # The merge alone was looked at.
    assert unread.report.unmeasured == ("model",)
    assert "Nothing that `model/` computes was measured." in card_of(unread)
    alone = export_frozen(base, request_for(tmp_path / "base", "hf"))
    assert alone.report.unmeasured == ("model",)
    assert "## Verified" not in card_of(alone)
    for exported in (unread, alone):
        assert "gates passed" not in page_of(exported)
        assert "## Not measured" in card_of(exported)
        assert "directories not measured: model<" in page_of(exported)
        assert "not measured: model" in screen_of(exported)
    measured = export_frozen(base, request_for(tmp_path / "onnx", "onnx"))
    assert measured.report.unmeasured == ()
    assert "gates passed" in page_of(measured)
    assert "## Not measured" not in card_of(measured)
    some = export_frozen(base, request_for(tmp_path / "some", "onnx", "hf"))
    assert "gates passed" in page_of(some)
    assert "directories not measured: model<" in page_of(some)


def test_a_dense_merge_says_how_many_zeros_are_left(plain: Run, tmp_path: Path) -> None:
    exported = export_subnet(plain.path / "best.json", request_for(tmp_path / "dense", "hf", merge="dense"))
    masks, model = load_masks(plain.sparse / MASK_FILE), load_model(exported.path / "model")
    pruned = sum(int((~mask).sum()) for mask in masks.values())
    zeros = sum(int((model.get_submodule(path).weight == 0)[~mask].sum()) for path, mask in masks.items())
    assert 0 < zeros < pruned
    found = exported.report.zeros_left
    assert found is not None
    assert (found.pruned, found.zeros) == (pruned, zeros)
    said = f"merged densely: {zeros:,} of {pruned:,} pruned weights are still zero"
    assert f"- {said}" in card_of(exported)
    assert said in screen_of(exported)
    assert f"{zeros:,} of {pruned:,} pruned weights are still zero" in page_of(exported)
    card = ModelCard.load(exported.path / "README.md")
    assert "pruned" not in card.data.tags
    assert "pruned by" not in card.text
    kept = export_subnet(plain.path / "best.json", request_for(tmp_path / "kept", "hf", merge="separate"))
    assert kept.report.zeros_left is None
    assert "pruned by" in card_of(kept)
    # Its zeros were counted, and nothing was run; nor can its ranks be loaded, which were not exported.
    assert kept.report.zeros
    assert kept.report.unmeasured == ("base",)
    assert "PeftModel" not in card_of(kept)


def test_number_formats_are_those_of_the_files(base: Path, tmp_path: Path) -> None:
    exported = export_frozen(base, request_for(tmp_path / "both", "hf", "onnx", weight_format="int8"))
    assert exported.report.number_formats == {"model": "bf16", "onnx": "int8"}
    assert "- stored weights: bf16 in model/, int8 in onnx/" in card_of(exported)
    assert "weights bf16 in model/, int8 in onnx/<" in page_of(exported)
    alone = export_frozen(base, request_for(tmp_path / "alone", "hf"))
    assert "- stored weights: bf16\n" in card_of(alone)


def test_a_file_in_which_nothing_was_packed_is_a_stock_one(base: Path, tmp_path: Path) -> None:
    exported = export_frozen(
        base, request_for(tmp_path / "sparse", "openvino", weight_format="bf16", sparse_kernels=("openvino",))
    )
    packing = exported.report.packings["openvino"]
    assert (packing.operators, packing.layers) == ({}, ())
    assert exported.report.kernels == {"openvino": "stock"}
    assert "operators of this project" not in card_of(exported)
    assert "shearling_runtime" not in card_of(exported)
    assert "openvino: nothing was packed" in card_of(exported)
    assert "openvino: nothing was packed" in screen_of(exported)
    assert "Nothing was packed, so any runtime reads it" in page_of(exported)
    assert "bytes became" not in page_of(exported)


def test_a_widened_gate_is_told_on_screen_page_card_and_in_the_report(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file that float32 itself cannot tell from its reference any better."""

    def disturbed(directory: Path, blocks: Blocks) -> LogitsInTurn:
        for logits in onnx_logits(directory, blocks):
            logits[0, 0] += 2e-3
            yield logits

    monkeypatch.setattr(onnx, "onnx_logits", disturbed)
    monkeypatch.setattr(parity_check, "rounding_of", lambda *_, **__: 1e-3)
    exported = export_frozen(base, request_for(tmp_path / "export", "onnx"))
    said = "ok: limit 4.0e-03, since float32 rounds the reference by 1.0e-03"
    first, batched = exported.report.parity
    assert (first.candidate, first.verdict, first.rounding, first.gate.max_abs) == ("onnx", said, 1e-3, 4e-3)
    assert (batched.candidate, batched.verdict, batched.rounding) == ("onnx, padded batch", "ok", None)
    assert read_document(exported.path / "report.json", ExportReport).parity == exported.report.parity
    row = next(line for line in card_of(exported).splitlines() if line.startswith("| onnx |"))
    assert row.endswith(f"| {said} |")
    assert f'<td class="ok">{said}</td>' in page_of(exported)
    line = next(line for line in screen_of(exported, width=400).splitlines() if "onnx (fp32)" in line)
    assert said in line


def test_a_screen_names_the_formats_that_lost_zeros(
    plain: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost_zeros(directory: Path, shapes: Any) -> Any:
        return ((path, np.zeros_like(zeros)) for path, zeros in read_huggingface(directory, shapes))

    kept = export_frozen(plain.sparse, request_for(tmp_path / "kept", "hf", "onnx"))
    assert "every format holds them" in words_of(screen_of(kept))
    monkeypatch.setattr(huggingface, "read_huggingface", lost_zeros)
    lost = export_frozen(plain.sparse, request_for(tmp_path / "lost", "hf", "onnx", verify="warn"))
    screen = words_of(screen_of(lost))
    assert "pruned modules; lost by model" in screen
    assert "lost by model, onnx" not in screen
    assert "every format holds them" not in screen
    pruned = lost.report.zeros[0].pruned
    assert f"- model: 0 of {pruned:,} pruned weights are exactly zero" in card_of(lost)
    assert f"- model: {pruned} pruned weights are not zero" in card_of(lost)
    assert "gates passed" not in page_of(lost)


def test_what_no_format_takes_is_refused_and_what_needs_an_adapter_is_named(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox " * 99)
    asked = Quantization("balanced", dataset=(str(text),))
    with pytest.raises(UsageError, match="nothing would be rounded: hf keeps the type of the base") as raised:
        plan_frozen(base, request_for(tmp_path / "export", "hf", weight_format="int4", quantization=asked))
    assert raised.value.where == "--quantization"
    plan = plan_frozen(base, request_for(tmp_path / "export", "peft", "hf"))
    assert [item.entry.name for item in plan.formats] == ["hf"]
    assert "left out: peft: there is no adapter" in capsys.readouterr().err


def test_zeros_that_gptq_loses_are_put_back_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The widths of this family have groups of 16; the inner one stays in int8."""
    run = run_with_best(tmp_path, family="llama", masked=True)
    quantization = Quantization(samples=6, scale_estimation=True, gptq=True)
    options = {"weight_format": "int4", "quantization": quantization, "sparse_kernels": ("openvino",)}
    request = request_for(tmp_path / "export", "openvino", "onnx", verify="warn", **options)
    exported = export_subnet(run.path / "best.json", request)
    found = exported.report.quantization
    assert found is not None
    assert (found.preset, found.algorithms, found.samples) == (None, ("scale_estimation", "gptq"), 6)
    assert (found.matrices, found.layer_error) == (18, None)
    assert all(check.zeros == check.pruned > found.put_back > 0 for check in exported.report.zeros)
    assert {check.format for check in exported.report.zeros} == {"openvino", "onnx"}
    told = f"{found.put_back:,} pruned weights that rounding had made another number are zero again"
    card = card_of(exported)
    assert f"- {told}\n" in card
    assert "18 matrices rounded on task (NNCF's scale estimation, GPTQ)" in card
    assert "--num-samples 6 --scale-estimation --gptq" in card
    screen = screen_of(exported, width=400)
    assert "int4, NNCF's scale estimation, GPTQ: 18 matrices in groups of 64, on task" in screen
    assert told in screen
    counted = exported.report.integers_certificate
    assert counted is not None
    assert counted.zeros - counted.accidental == exported.report.zeros[0].pruned
    assert f", {counted.sparsity:.2%} in the integers of {counted.modules}" in screen
    assert f", {counted.sparsity:.2%} in the integers of {counted.modules}\n" in card
    # Were they not put back, the files would be rejected for them.
    monkeypatch.setattr(nncf_rounding, "_with_zeros", lambda matrices, _: (matrices, 0))
    with pytest.raises(SparsityLost, match="pruned weights are not zero"):
        export_subnet(run.path / "best.json", replace(request, output=tmp_path / "lost", verify="strict"))
