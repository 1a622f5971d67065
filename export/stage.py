"""The export stage: select, merge, write every format, certify, compare, report; complete and proven, or not at all."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.formats.classifier import (
    onnx_class_logits,
    openvino_class_logits,
    write_onnx_classifier,
    write_openvino_classifier,
)
from export.formats.onnx import write_onnx
from export.formats.openvino import write_openvino
from export.narrowing import check_size, without_frozen_formats
from export.number_format import PACKABLE, Format, Weights
from export.reporting.report import ExportReport, PackingReport, ParityCheck, ZeroCheck
from export.request import ExportRequest
from export.verification.parity import (
    FLOAT32_CPU,
    GATES,
    Gate,
    Logits,
    compare,
    fixed_blocks,
    onnx_logits,
    openvino_logits,
    rounding_of,
    torch_logits,
    widen,
)
from shearling.artefact import Artefact, Draft, check_destination, open_artefact, write_artefact
from shearling.console import log
from shearling.elastic.mask import MASK_FILE, Masks, check_masked_zeros, load_masks
from shearling.elastic.merge_rule import MergeMode, resolve_merge
from shearling.elastic.narrowing import cut_masks
from shearling.elastic.size import measure_model, measure_network
from shearling.elastic.sub_adapter import write_sub_adapter
from shearling.elastic.subnet import OpenSubnet, open_subnet
from shearling.elastic.super_network import SuperNetwork, assemble_super_network
from shearling.errors import ArtefactMismatch, ParityFailed, SparsityLost, UsageError
from shearling.model.checkpoint import load_model, load_tokenizer, save_model
from shearling.model.head import is_classifier
from shearling.strict_json import write_document

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MERGED = "merged torch model, float32"
MACS_TOKENS = 256
"""Length of the sequence whose multiply-accumulates a report counts."""


@dataclass
class _Work:
    """What is known while an export is made."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    masks: Masks | None
    blocks: list[Any]
    merged: Logits = field(default_factory=list)
    parity: list[ParityCheck] = field(default_factory=list)
    zeros: list[ZeroCheck] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    packings: dict[Format, PackingReport | None] = field(default_factory=dict)

    @property
    def classifies(self) -> bool:
        """Whether the model is a classifier, which has no cache and answers once."""
        return is_classifier(self.model.config)

    @functools.cached_property
    def rounding(self) -> float:
        """See `rounding_of`; of the merged model, measured where a gate would break."""
        try:
            return rounding_of(self.model, self.blocks, self.merged)
        except RuntimeError as error:
            # Such as a forward that mixes types of its own.
            log.print(f"the model cannot run in float64, so the gate stays as it is: {error}")
            return 0.0


def export_subnet(path: Path, request: ExportRequest) -> Artefact:
    """Export the sub-network that a `best.json` describes.

    Args:
        path: the document.
        request: what to write, and where.

    Returns:
        The `export` artefact.

    Raises:
        ArtefactError: the document or anything that it names is missing, corrupt or mismatched.
        MergeRefused: the merge would silently change the model.
        ParityFailed, SparsityLost: a gate broke; the files are kept beside the output under `.rejected`.
    """
    check_request(request)
    opened = open_subnet(path)
    mode = resolve_merge(opened.subnet.merge, request.merge, allow_approximate=request.allow_approximate)
    request = _writable(request, opened, mode)
    log.print(f"{path}: {opened.subnet.id}, merge mode {mode}")
    parents: dict[str, Artefact] = {opened.frozen.manifest.kind: opened.frozen, "super_adapter": opened.adapter}
    with write_artefact(request.output, kind="export", parents=parents, force=request.force) as draft:
        network = assemble_super_network(opened.frozen, opened.adapter)
        masks = network.masks
        work = _start(network.model, network.tokenizer, masks)
        reference = _reference_logits(network, opened, work)
        if "peft" in request.formats:
            stored = masks if opened.space.adapter.masked_training else None
            write_sub_adapter(
                network,
                opened.subnet.choice,
                draft.directory / "adapter",
                base_model=opened.subnet.base.model_id,
                masks=stored,
            )
        expected = measure_network(network).parameters(opened.space.cuts(opened.subnet.choice))
        _merge(network, opened, mode, masks)
        if masks is not None:
            masks = cut_masks(masks, opened.space.cuts(opened.subnet.choice))
        if mode != "separate":
            check_size(work.model, expected)
        work.merged = torch_logits(work.model, work.blocks)
        exact = mode in opened.subnet.merge.allowed
        _record(work, "merged", "unmerged super-network, float32", "fp32", reference, work.merged, gated=exact)
        kept = masks if mode != "dense" else None
        facts = {
            "source": path.name,
            "model_id": opened.subnet.base.model_id,
            "subnet_id": opened.subnet.id,
            "narrowed": _narrowed(opened),
            "merge": mode,
            "exact": exact,
            "adapter_params": network.adapter_params(opened.subnet.choice),
        }
        _finish(work, request, draft, facts, kept, opened.frozen, separate=mode == "separate")
    return open_artefact(request.output, kind="export")


def export_frozen(directory: Path, request: ExportRequest) -> Artefact:
    """Export a `base` or `sparse` artefact as it is, without an adapter.

    Raises:
        UsageError: a PEFT adapter or a merge was asked for.
    """
    if request.merge is not None:
        raise UsageError("there is no adapter to merge", where="--merge", remedy="Leave the option out")
    check_request(request)
    frozen = open_artefact(directory, kind="sparse" if (directory / MASK_FILE).is_file() else "base")
    formats = tuple(item for item in request.formats if item != "peft")
    request = ExportRequest(**{**request.__dict__, "formats": formats})
    with write_artefact(
        request.output, kind="export", parents={frozen.manifest.kind: frozen}, force=request.force
    ) as draft:
        model, masks = load_model(frozen.path), _masks_of(frozen)
        if masks is not None:
            check_masked_zeros(model, masks)
        work = _start(model, load_tokenizer(frozen.path), masks)
        work.merged = torch_logits(model, work.blocks)
        facts = {
            "source": directory.name,
            "model_id": frozen.manifest.details["model_id"],
            "subnet_id": None,
            "narrowed": 0,
            "merge": "none",
            "exact": True,
            "adapter_params": 0,
        }
        _finish(work, request, draft, facts, masks, frozen, separate=False)
    return open_artefact(request.output, kind="export")


def check_request(request: ExportRequest) -> None:
    """Refuse before any work what could only fail after it.

    Raises:
        OutputExists: the destination is taken.
        UsageError: the sparse kernel cannot read these weights, or its format is not to be written.
        PackageMissing: the headers of ONNX Runtime are needed and not installed.
        CompilerMissing: the operators of the sparse kernel cannot be built here.
    """
    from shearling.kernel.build import build_onnx_runtime_library
    from shearling.kernel.openvino_extension import node_factory

    check_destination(request.output, force=request.force)
    if request.kernel == "sparse":
        _check_packable(request, "openvino", option="--kernel")
        node_factory()
    if request.onnx_kernel == "sparse":
        _check_packable(request, "onnx", option="--onnx-kernel")
        build_onnx_runtime_library()


def _check_packable(request: ExportRequest, name: Format, *, option: str) -> None:
    if request.weights not in PACKABLE or name not in request.formats:
        raise UsageError(
            f"the sparse kernel reads {', '.join(PACKABLE)}, by {option} in {name}; asked for are "
            f"{request.weights} and {', '.join(request.formats)}",
            where=option,
            remedy=f"Give --weights int8 and leave {name} in --formats; --kernel is of openvino, --onnx-kernel of onnx",
        )


def _writable(request: ExportRequest, opened: OpenSubnet, mode: MergeMode) -> ExportRequest:
    """The request without the formats that this sub-network cannot have."""
    if opened.space.width_groups or "classes" in opened.frozen.manifest.details:
        return without_frozen_formats(request, mode)
    return request


def _narrowed(opened: OpenSubnet) -> int:
    full = opened.space.widths(opened.space.maximal())
    return sum(width < full[path] for path, width in opened.subnet.widths.items())


def _start(model: Any, tokenizer: Any, masks: Masks | None) -> _Work:
    return _Work(model, tokenizer, masks, fixed_blocks(tokenizer, vocabulary=model.config.vocab_size))


def _masks_of(frozen: Artefact) -> Masks | None:
    return load_masks(frozen.path / MASK_FILE) if frozen.manifest.kind == "sparse" else None


def _reference_logits(network: SuperNetwork, opened: OpenSubnet, work: _Work) -> Logits:
    network.activate(opened.subnet.choice)
    with network.materialised():
        return torch_logits(network.model, work.blocks)


def _merge(network: SuperNetwork, opened: OpenSubnet, mode: MergeMode, masks: Masks | None) -> None:
    from export.merge import merge

    if mode == "masked" and masks is None:
        raise ArtefactMismatch("a masked merge needs a sparse base", where=opened.frozen.path)
    merge(network, opened.subnet.choice, mode, masks=masks)


def _record(
    work: _Work,
    candidate: str,
    reference_name: str,
    precision: Weights,
    reference: Logits,
    logits: Logits,
    *,
    gated: bool = True,
) -> None:
    parity = compare(reference, logits, work.blocks)
    gate = GATES[precision] if gated else Gate()
    # Of the merged model alone: it is what rounding is measured on, and a merge is exact or refused.
    rounding = (
        work.rounding
        if reference_name == MERGED and gate.max_abs is not None and parity.max_abs > gate.max_abs
        else None
    )
    if rounding is not None:
        gate = widen(gate, rounding)
    check = ParityCheck(
        candidate=candidate,
        reference=reference_name,
        precision=precision,
        parity=parity,
        gate=gate,
        violations=tuple(gate.violations(parity)),
    )
    log.print(
        f"parity {candidate} ({precision}): max |Δ| {parity.max_abs:.2e}, KL {parity.kl_mean:.2e}, "
        f"top-1 {parity.top1_agreement:.1%}: {check.verdict}"
    )
    work.parity.append(check)


@contextmanager
def _timed(work: _Work, name: str) -> Iterator[None]:
    log.print(f"writing {name} ...")
    started_s = time.monotonic()
    yield
    work.seconds[name] = round(time.monotonic() - started_s, 1)


def _finish(
    work: _Work,
    request: ExportRequest,
    draft: Draft,
    facts: Mapping[str, Any],
    masks: Masks | None,
    frozen: Artefact,
    *,
    separate: bool,
) -> None:
    from export.reporting.card import write_card
    from export.reporting.page import write_report_page

    certificate = _certify(work, masks, separate=separate)
    sparsity = frozen.manifest.details.get("sparsity")
    _write_formats(work, request, draft.directory, masks, frozen, separate=separate)
    if request.verify != "off":
        _verify_formats(work, request, draft.directory, masks)
    directories = {path.name: path for path in sorted(draft.directory.iterdir()) if path.is_dir()}
    size = measure_model(work.model)
    report = ExportReport(
        **facts,
        head="classifier" if work.classifies else "language_model",
        macs_m=size.macs(tokens=MACS_TOKENS) / 1e6,
        weights=request.weights,
        formats=request.formats,
        parameters=sum(parameter.numel() for parameter in work.model.parameters()),
        sparsity=sparsity,
        certificate=certificate,
        zeros=tuple(work.zeros),
        parity=tuple(work.parity),
        sizes_bytes={
            name: sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            for name, path in directories.items()
        },
        seconds=work.seconds,
        kernel=request.kernel,
        packing=work.packings.get("openvino"),
        onnx_kernel=request.onnx_kernel,
        onnx_packing=work.packings.get("onnx"),
    )
    write_document(draft.directory / "report.json", report)
    write_report_page(draft.directory / "report.html", report)
    write_card(draft.directory / "README.md", report)
    draft.details |= {
        "model_id": facts["model_id"],
        "subnet_id": facts["subnet_id"],
        "merge": facts["merge"],
        "weights": request.weights,
    }
    draft.details |= {"kernel": request.kernel, "onnx_kernel": request.onnx_kernel}
    draft.details |= {f"{name}_operators": packing.operators for name, packing in report.packings.items()}
    _judge(report, request, draft)


def _certify(work: _Work, masks: Masks | None, *, separate: bool) -> Any:
    from export.verification.nncf_certificate import certify_sparsity

    if masks is None:
        return None
    if separate:
        # The frozen weights are what is sparse; the module path of each gains the wrapper's name.
        modules = dict(work.model.named_modules())
        masks = {f"{path}.base" if hasattr(modules[path], "base") else path: mask for path, mask in masks.items()}
    with _timed(work, "certificate"):
        return certify_sparsity(work.model, masks)


def _write_formats(
    work: _Work, request: ExportRequest, directory: Path, masks: Masks | None, frozen: Artefact, *, separate: bool
) -> None:
    if "hf" in request.formats:
        with _timed(work, "model"):
            # Ranks kept apart have no place in a Hugging Face model: what is written is the frozen model that
            # adapter/ belongs
            # to, under a name of its own, so that nobody runs it for the fine-tuned one.
            model = load_model(frozen.path) if separate else work.model
            model.config.use_cache = not work.classifies
            save_model(model, work.tokenizer, directory / ("base" if separate else "model"))
    if "openvino" in request.formats:
        with _timed(work, "openvino"):
            write_ir = write_openvino_classifier if work.classifies else write_openvino
            sparsity = _rt_info(masks, frozen)
            work.packings["openvino"] = write_ir(
                work.model,
                work.tokenizer,
                directory / "openvino",
                weights=request.weights,
                sparsity=sparsity,
                kernel=request.kernel,
            )
    if "onnx" in request.formats:
        with _timed(work, "onnx"):
            write_graph = write_onnx_classifier if work.classifies else write_onnx
            work.packings["onnx"] = write_graph(
                work.model, work.tokenizer, directory / "onnx", weights=request.weights, kernel=request.onnx_kernel
            )


def _rt_info(masks: Masks | None, frozen: Artefact) -> dict[str, str]:
    if masks is None:
        return {}
    pruned = sum(int((~mask).sum()) for mask in masks.values())
    total = sum(mask.numel() for mask in masks.values())
    sparsity = frozen.manifest.details["sparsity"]
    return {
        "method": sparsity["method"],
        "pattern": sparsity["pattern"],
        "modules": str(len(masks)),
        "pruned": str(pruned),
        "share": f"{pruned / total:.6f}",
    }


def _verify_formats(work: _Work, request: ExportRequest, directory: Path, masks: Masks | None) -> None:
    from export.verification.zeros import check_zeros

    weights = request.weights
    if "openvino" in request.formats:
        read = openvino_class_logits if work.classifies else openvino_logits
        logits = read(directory / "openvino", work.blocks, config=FLOAT32_CPU)
        _record(work, "openvino", MERGED, weights, work.merged, logits)
        default = read(directory / "openvino", work.blocks, config={})
        _record(
            work,
            "openvino, default precision",
            MERGED,
            "bf16" if weights in ("fp32", "fp16", "bf16") else weights,
            work.merged,
            default,
        )
    if "onnx" in request.formats:
        logits = (onnx_class_logits if work.classifies else onnx_logits)(directory / "onnx", work.blocks)
        _record(work, "onnx", MERGED, weights, work.merged, logits)
    if masks is not None:
        work.zeros += check_zeros(directory, masks)


def _judge(report: ExportReport, request: ExportRequest, draft: Draft) -> None:
    broken = report.violations
    if not broken or request.verify != "strict":
        for line in broken:
            log.print(f"warning: {line}", style="yellow")
        return
    rejected = request.output.with_name(f"{request.output.name}.rejected")
    _keep_rejected(draft.directory, rejected)
    error = SparsityLost if any(check.zeros != check.pruned for check in report.zeros) else ParityFailed
    raise error(
        "; ".join(broken), where=rejected, remedy="The files and report.html are kept there; --verify warn accepts them"
    )


def _keep_rejected(directory: Path, rejected: Path) -> None:
    import shutil

    shutil.rmtree(rejected, ignore_errors=True)
    shutil.copytree(directory, rejected)


def plan(path: Path, request: ExportRequest) -> dict[str, Any]:
    """Verify all inputs and say what an export would do, writing nothing.

    Args:
        path: a `best.json`.
        request: as for `export_subnet`.
    """
    check_request(request)
    opened = open_subnet(path)
    mode = resolve_merge(opened.subnet.merge, request.merge, allow_approximate=request.allow_approximate)
    request = _writable(request, opened, mode)
    return {
        "subnet": opened.subnet.id,
        "base": str(opened.frozen.path),
        "adapter": str(opened.adapter.path),
        "merge": mode,
        "exact": mode in opened.subnet.merge.allowed,
        "output": str(request.output),
        "formats": list(request.formats),
        "weights": request.weights,
        "kernel": request.kernel,
        "onnx_kernel": request.onnx_kernel,
        "modules": len(opened.subnet.ranks),
        "mode": opened.subnet.mode,
        "narrowed": len(opened.subnet.widths),
    }
