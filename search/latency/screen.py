"""What `python -m search latency` says."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from search.latency.stage import MeasuredTable
from shearling.command_line import Result

MOST_ROWS = 20
"""More forms than these stand in the file alone."""


def summarise_table(found: MeasuredTable) -> Result:
    """The time of the whole model, of what is not elastic, and of every form."""
    document = found.table.document
    data = {
        "latency": str(found.table.where),
        "reused": found.reused,
        "conditions": document.conditions.model_dump(mode="json"),
        "whole_ms": document.whole.ms,
        "constant_ms": document.constant_ms,
        "entries": len(document.entries),
    }
    title = f"{found.table.where}: {'used again' if found.reused else 'measured'}\n{found.table}"
    table = Table(title=escape(title), title_justify="left")
    for heading in ("", "ms", "middle half of the samples"):
        table.add_column(heading, justify="right" if heading else "left")
    whole = document.whole
    table.add_row("the whole model", f"{whole.ms:.3f}", f"{whole.low_ms:.3f} to {whole.high_ms:.3f}")
    table.add_row("of it, not elastic", f"{document.constant_ms:.3f}", "")
    for entry in document.entries[:MOST_ROWS]:
        time = entry.time
        table.add_row(f"layer {entry.form}", f"{time.ms:.4f}", f"{time.low_ms:.4f} to {time.high_ms:.4f}")
    more = len(document.entries) - MOST_ROWS
    table.caption = (f"and {more} forms more\n" if more > 0 else "") + "next: python -m search --run RUN --cost latency"
    table.caption_justify = "left"
    return Result(data, table)
