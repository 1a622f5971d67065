"""`report.html`: the report as one self-contained page."""

from __future__ import annotations

from pathlib import Path

from export.reporting.report import ExportReport
from shearling.page import render_page

TEMPLATE = Path(__file__).with_name("report.html.jinja")


def write_report_page(path: Path, report: ExportReport) -> None:
    """Render the report to `path`; no script, no external resource."""
    path.write_text(render_page(TEMPLATE, report=report, layers=_layers(report)), encoding="utf-8")


def _layers(report: ExportReport) -> list[tuple[str, float]]:
    """Module path and share of zeros, as NNCF counted them."""
    if report.certificate is None:
        return []
    return [(module.name, module.sparsity) for module in report.certificate.by_module]
