"""`report.html`: the report as one self-contained page."""

from __future__ import annotations

from pathlib import Path

from export.reporting.report import ExportReport

TEMPLATE = "report.html.jinja"


def write_report_page(path: Path, report: ExportReport) -> None:
    """Render the report to `path`; no script, no external resource."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((Path(__file__).parent / TEMPLATE).read_text(encoding="utf-8"))
    path.write_text(template.render(report=report, layers=_layers(report)), encoding="utf-8")


def _layers(report: ExportReport) -> list[tuple[str, float]]:
    """Module path and share of zeros, as NNCF counted them."""
    if report.certificate is None:
        return []
    return [(module.name, module.sparsity) for module in report.certificate.by_module]
