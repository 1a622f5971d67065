"""The export stage: plan, merge, write every format, certify, compare, report; complete and proven, or not at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from export.formats.export_format import ExportSubject, Storage
from export.formats.openvino import convert
from export.formats.written_format import Proof, WrittenFormat, write_format
from export.merged_model import MergedModel, ask_task, prepare_model
from export.plan import ExportPlan, plan_frozen, plan_subnet
from export.quantization.nncf_rounding import round_by_nncf
from export.quantization.quantize import Quantized, quantize
from export.rejection import keep_rejected
from export.reporting.card import write_card
from export.reporting.page import write_report_page
from export.reporting.report import ExportReport, build_report
from export.request import ExportRequest
from export.verification.nncf_certificate import certify_integers, certify_sparsity
from shearling.artefact import Artefact, Draft, write_artefact
from shearling.console import log
from shearling.errors import ParityFailed, SparsityLost
from shearling.model.mapped_pages import pages_given_back
from shearling.registry.export_formats import EXPORT_FORMATS
from shearling.registry.number_formats import NUMBER_FORMATS
from shearling.strict_json import write_document

MERGED = ".merged-"
"""Begins the name of the directory with the merged weights, which is gone before the export is complete."""


@dataclass(frozen=True)
class FinishedExport:
    """What an export made, and what it found out."""

    artefact: Artefact
    report: ExportReport

    @property
    def path(self) -> Path:
        """Where the artefact stands."""
        return self.artefact.path


def export_subnet(path: Path, request: ExportRequest) -> FinishedExport:
    """Export the sub-network that a `best.json` describes.

    Args:
        path: the document.
        request: what to write, and where.

    Raises:
        ArtefactError: the document or anything that it names is missing, corrupt or mismatched.
        MergeRefused: the merge would silently change the model.
        ParityFailed, SparsityLost: a gate broke; the files, where some were written by then, are kept beside the
            output under `.rejected`.
    """
    return export_planned(plan_subnet(path, request))


def export_frozen(directory: Path, request: ExportRequest) -> FinishedExport:
    """Export a `base` or `sparse` artefact as it is, without an adapter.

    Raises:
        UsageError: a merge was asked for, or nothing but an adapter.
        ArtefactError, ParityFailed, SparsityLost: see `export_subnet`.
    """
    return export_planned(plan_frozen(directory, request))


def export_planned(plan: ExportPlan) -> FinishedExport:
    """Write, prove and judge every planned format; the artefact appears only if no gate broke."""
    request = plan.request
    with (
        write_artefact(request.output, kind="export", parents=plan.parents, force=request.force) as draft,
        TemporaryDirectory(dir=draft.directory, prefix=MERGED) as checkpoint,
        nullcontext() if plan.keeps_pages else pages_given_back(),
    ):
        merged = prepare_model(plan, checkpoint=Path(checkpoint))
        subject, masks = merged.subject, merged.subject.masks
        certificate = None if masks is None else certify_sparsity(subject.model, masks)
        quantized = _quantize(plan, subject, draft.directory)
        if quantized is not None:
            subject = dataclasses.replace(subject, integers=quantized.matrices)
        in_integers = None if masks is None else certify_integers(subject.integers, subject.model, masks)
        written = [write_format(planned, subject, draft.directory) for planned in plan.formats]
        task = ask_task(subject, plan)
        proofs: list[Proof] = []
        if request.verify != "off":
            with _kept_where_zeros_are_missing(request, draft):
                proofs = [item.prove(merged.reference, masks, task, subject) for item in written]
        report = build_report(plan, merged, certificate, written, proofs, quantized, in_integers)
        _describe(draft, report, written, merged)
        _judge(report, request, draft)
    return FinishedExport(draft.sealed, report)


def _quantize(plan: ExportPlan, subject: ExportSubject, directory: Path) -> Quantized | None:
    """Integers of the matrices, chosen on calibration text.

    Args:
        plan: says how; None comes back where no text is to be seen.
        subject: the model.
        directory: has room for OpenVINO's form of it, without its large weights.
    """
    model, tokenizer, classifier = subject.model, subject.tokenizer, plan.head == "classifier"
    if plan.quantization is None:
        return None
    if not plan.quantization.algorithms:
        return quantize(model, tokenizer, plan.quantization, classifier=classifier)
    writer = EXPORT_FORMATS.get("openvino").load_for(plan.head)()
    with TemporaryDirectory(dir=directory, prefix=MERGED) as graph:
        ir = convert(model, Path(graph), writer.conversion, Storage(NUMBER_FORMATS.get(plan.request.weight_format)))
        masks = subject.masks
        return round_by_nncf(ir, model, tokenizer, plan.quantization, masks=masks, classifier=classifier)


def _describe(draft: Draft, report: ExportReport, written: Sequence[WrittenFormat], merged: MergedModel) -> None:
    """Report, page and card, and what the manifest says."""
    adapter = any(item.planned.entry.needs_adapter for item in written)
    shape = {"narrowed": report.narrowed > 0, "separate": merged.subject.separate, "adapter": adapter}
    usages = {item.name: usage for item in written if (usage := item.usage(**shape)) is not None}
    write_document(draft.directory / "report.json", report)
    write_report_page(draft.directory / "report.html", report)
    write_card(draft.directory / "README.md", report, usages)
    draft.details |= report.model_dump(include={"model_id", "subnet_id", "merge", "weight_format", "kernels"})
    if merged.subject.adapter is not None:
        draft.details["choice"] = dict(merged.subject.adapter.choice)
    if report.mixture is not None:
        draft.details["layer_formats"] = list(report.mixture.weight_formats)
    draft.details |= {f"{name}_operators": packing.operators for name, packing in report.packings.items()}


@contextmanager
def _kept_where_zeros_are_missing(request: ExportRequest, draft: Draft) -> Iterator[None]:
    """Keep the files, of which there is no report, where one of them lacks a pruned module."""
    try:
        yield
    except SparsityLost as error:
        rejected = keep_rejected(draft.directory, request.output, leave=MERGED)
        raise SparsityLost(
            f"{error.where}: {error.message}", where=rejected, remedy="The files are kept there, without a report"
        ) from error


def _judge(report: ExportReport, request: ExportRequest, draft: Draft) -> None:
    broken = report.violations
    if not broken or request.verify != "strict":
        for line in broken:
            log.print(f"warning: {line}", style="yellow")
        return
    rejected = keep_rejected(draft.directory, request.output, leave=MERGED)
    error = SparsityLost if any(check.zeros != check.pruned for check in report.zeros) else ParityFailed
    remedy = "The files and report.html are kept there; --verify warn accepts them"
    if request.weight_format == "int4" and report.quantization is None and report.trained_bits is None:
        remedy += "; int4 that is rounded on text loses less: --quantization balanced, with --dataset"
    raise error("; ".join(broken), where=rejected, remedy=remedy)
