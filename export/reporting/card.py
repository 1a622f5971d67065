"""The model card of an export: what it is, how it was made, how it was checked, how to run it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from export.reporting.report import ExportReport


def write_card(path: Path, report: ExportReport, usages: Mapping[str, str]) -> None:
    """Write `README.md` of an export.

    Args:
        path: of the file.
        report: what it says.
        usages: directory -> Python that loads it.
    """
    path.write_text("\n\n".join(_sections(report, usages)) + "\n", encoding="utf-8")


def _sections(report: ExportReport, usages: Mapping[str, str]) -> list[str]:
    tag = "text-classification" if report.head == "classifier" else "text-generation"
    return [
        f"---\nbase_model: {report.model_id}\nlibrary_name: shearling\npipeline_tag: {tag}\n---",
        f"# {report.model_id}, sub-network {report.subnet_id or 'none'}",
        _made(report),
        "## Verified\n\n" + _parity(report),
        "## Use",
        *(f"`{name}/`\n\n```python\n{usages[name]}\n```" for name in report.sizes_bytes if name in usages),
    ]


def _made(report: ExportReport) -> str:
    exact = "exact" if report.exact else "approximate: the adapter was trained without the mask"
    lines = [
        f"- merge: {report.merge} ({exact})",
        f"- adapter weights: {report.adapter_params:,}",
        f"- stored weights: {report.weight_format}",
    ]
    if report.quantization is not None:
        made = report.quantization
        lines.append(
            f"- {made.matrices} matrices rounded on {', '.join(made.dataset)} ({made.preset}), the others in int8"
        )
    if report.trained_bits is not None:
        lines.append(f"- weights trained as integers of {report.trained_bits} bits; embeddings and head are apart")
    if report.narrowed:
        lines.append(
            f"- narrowed: {report.narrowed} linear layers; {report.parameters:,} weights, "
            f"{report.macs_m / 1e3:.2f} G MACs at 256 tokens"
        )
    if report.sparsity is not None:
        lines.append(
            f"- pruned by {report.sparsity['method']} ({report.sparsity['pattern']}), target "
            f"{report.sparsity['target']:.0%}"
        )
    if report.certificate is not None:
        lines.append(
            f"- NNCF counts {report.certificate.sparsity:.4%} zeros in {report.certificate.modules} pruned modules"
        )
    if report.packings:
        lines += [f"- {name}: {kernel} kernel" for name, kernel in report.kernels.items()]
    for name, packing in report.packings.items():
        lines.append(
            f"- {name} is packed for the sparse kernel: {len(packing.layers)} matrices, "
            f"{packing.bytes_before:,} bytes became "
            f"{packing.bytes_after:,}; the runtime needs the operators of this project to read them"
        )
    lines += [
        f"- {check.format}: {check.zeros:,} of {check.pruned:,} pruned weights are exactly zero"
        for check in report.zeros
    ]
    return "\n".join(lines)


def _parity(report: ExportReport) -> str:
    head = "| compared | with | precision | max abs Δlogit | mean KL | top-1 | verdict |\n|---|---|---|---|---|---|---|"
    rows = [
        f"| {check.candidate} | {check.reference} | {check.precision} | {check.parity.max_abs:.2e} | "
        f"{check.parity.kl_mean:.2e} "
        f"| {check.parity.top1_agreement:.1%} | {check.verdict} |"
        for check in report.parity
    ]
    return "\n".join([head, *rows])
