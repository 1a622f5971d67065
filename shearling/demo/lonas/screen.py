"""The closing screen of the demo of elastic widths."""

from __future__ import annotations

from rich.table import Table

from shearling.demo.lonas.layout import LonasLayout
from shearling.demo.lonas.outcome import LonasOutcome
from shearling.demo.lonas.report import table_cells, table_headings


def closing_screen(outcome: LonasOutcome, layout: LonasLayout) -> Table:
    """The table, the time it took, and where the report is."""
    table = Table(title=f"{outcome.n} unseen rows", title_justify="left", caption_justify="left")
    for heading in table_headings(outcome):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for cells in table_cells(outcome):
        table.add_row(*cells)
    table.caption = f"{sum(outcome.seconds.values()) / 60:.1f} minutes; report: {layout.report}"
    return table
