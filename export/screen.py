"""What the export stage says when it is done."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from export.plan import ExportPlan
from export.reporting.report import ExportReport, QuantizationReport
from export.stage import FinishedExport
from shearling.artefact import Artefact
from shearling.command_line import Result


def show_plan(plan: ExportPlan) -> Result:
    """The plan of `--dry-run`."""
    facts = plan.describe()
    mixture = None if plan.merge is None else plan.merge.mixture
    shown = facts if mixture is None else {**facts, "layers": mixture.words}
    table = Table(
        title="plan: everything below was verified, nothing was written", title_justify="left", show_header=False
    )
    for name, value in shown.items():
        table.add_row(name, ", ".join(value) if isinstance(value, list) else str(value))
    return Result({"dry_run": True, **facts}, table)


def show_export(finished: FinishedExport) -> Result:
    """Parity, zeros and sizes of a finished export."""
    artefact, report = finished.artefact, finished.report
    title = f"{artefact.path}: {report.model_id}, {report.subnet_id or 'no adapter'}, merge {report.merge}"
    table = Table(title=title, title_justify="left", caption_justify="left")
    for column, side in (
        ("compared", "left"),
        ("max |Δlogit|", "right"),
        ("mean KL", "right"),
        ("top-1", "right"),
        ("verdict", "left"),
    ):
        table.add_column(column, justify=side)  # type: ignore[arg-type] # rich wants the literals that these are
    for check in report.parity:
        parity = check.parity
        name = f"{check.candidate} ({check.precision})"
        table.add_row(
            name, f"{parity.max_abs:.1e}", f"{parity.kl_mean:.1e}", f"{parity.top1_agreement:.1%}", check.verdict
        )
    for task in report.tasks:
        low, high = (f"{100 * end:+.1f}" for end in task.interval)
        verdict = f"{100 * task.difference:+.1f} points ({low} to {high}), {task.n} validation rows"
        table.add_row(f"{task.candidate} (task)", "", "", f"{task.accuracy:.1%}", task.violation or verdict)
    for tokenizer in report.tokenizers:
        table.add_row(
            f"{tokenizer.candidate} (tokenizer)", "", "", f"{tokenizer.texts} texts", escape(tokenizer.verdict)
        )
    table.caption = _caption(report, artefact)
    return Result(
        {
            "output": str(artefact.path),
            "sha256": artefact.sha256,
            "report": report.model_dump(mode="json", by_alias=True),
        },
        table,
    )


def _caption(report: ExportReport, artefact: Artefact) -> str:
    lines = []
    if report.counted_by_nncf is not None:
        pruned = report.certificate is not None and report.certificate.modules
        lines.append(f"{report.counted_by_nncf}; {_who_holds_them(report)}" if pruned else report.counted_by_nncf)
    if report.quantization is not None:
        lines.append(_quantization(report.quantization))
        if report.quantization.mended is not None:
            lines.append(report.quantization.mended)
    if report.mixture is not None:
        lines += report.mixture.words
    if report.trained_bits is not None:
        lines.append(f"the weights were trained as integers of {report.trained_bits} bits")
    if report.left_by_merge is not None:
        lines.append(report.left_by_merge)
    lines += _packed(report)
    if report.unmeasured:
        lines.append(f"not measured: {', '.join(report.unmeasured)}")
    lines.append(", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in report.sizes_bytes.items()))
    lines.append(f"report: {artefact.path / 'report.html'}")
    return "\n".join(lines)


def _packed(report: ExportReport) -> list[str]:
    """What the sparse kernel reads, and what runs each directory."""
    lines = []
    for name, packing in report.packings.items():
        if not packing.packed:
            lines.append(f"{name}: nothing was packed, for the reasons in report.json, so any runtime reads it")
            continue
        share = packing.bytes_after / packing.bytes_before if packing.layers else 1
        operators = ", ".join(f"{count} {kind}" for kind, count in packing.operators.items())
        kept = f"{len(packing.kept)} kept as they are"
        lines.append(
            f"{name}: packed {len(packing.layers)} matrices into {operators}: {share:.0%} of their bytes; {kept}"
        )
    if report.packings:
        lines.append("kernels: " + ", ".join(f"{name} {kernel}" for name, kernel in report.kernels.items()))
    return lines


def _who_holds_them(report: ExportReport) -> str:
    """What the zeros found in the files say."""
    if not report.zeros:
        return "the files were not looked at"
    losers = [check.format for check in report.zeros if check.zeros != check.pruned]
    return f"lost by {', '.join(losers)}" if losers else "every format holds them"


def _quantization(report: QuantizationReport) -> str:
    tuned = "" if report.kl_after is None else f", scales tuned from KL {report.kl_before:.3f} to {report.kl_after:.3f}"
    return (
        f"int4, {report.method}: {report.matrices} matrices in groups of {report.group_size}, on "
        f"{', '.join(report.dataset)}{tuned}; {report.seconds:.0f} s"
    )
