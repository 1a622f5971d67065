"""What `--dry-run` of a stage shows: what the work would take, and what there is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.table import Table

from shearling.command_line import Result
from shearling.resources import Estimate, available_memory_bytes, free_disk_bytes, in_words


def show_estimates(parts: Mapping[str, Estimate], where: Path) -> Result:
    """As JSON in bytes, and as a table.

    Args:
        parts: estimates by the name of what is made, one after the other.
        where: what is written, which need not exist.
    """
    memory, disk = available_memory_bytes(), free_disk_bytes(where)
    table = Table(title=f"{where} would take", title_justify="left")
    table.add_column("part")
    for column in ("memory", "disk"):
        table.add_column(column, justify="right")
    for part, estimate in parts.items():
        table.add_row(part, in_words(estimate.memory_bytes), in_words(estimate.disk_bytes))
    table.add_section()
    table.add_row("there is", in_words(memory), in_words(disk))
    data = {
        "dry_run": True,
        "parts": {
            part: {"memory_bytes": estimate.memory_bytes, "disk_bytes": estimate.disk_bytes}
            for part, estimate in parts.items()
        },
        "available": {"memory_bytes": memory, "disk_bytes": disk},
    }
    return Result(data, table)
