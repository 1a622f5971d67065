"""What `--dry-run` of a stage shows: what the work would take, and what there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from shearling.command_line import Result
from shearling.resources import Estimate, available_memory_bytes, free_device_bytes, free_disk_bytes, in_words


def show_estimates(parts: Mapping[str, Estimate], where: Path) -> Result:
    """As JSON in bytes, and as a table.

    Args:
        parts: estimates by the name of what is made, one after the other.
        where: what is written, which need not exist.
    """
    on_device = any(estimate.device_bytes for estimate in parts.values())
    there_is = Estimate(
        available_memory_bytes(), free_disk_bytes(where), (free_device_bytes() or 0) if on_device else 0
    )
    table = Table(title=f"{where} would take", title_justify="left")
    table.add_column("part")
    places = ("memory", "disk", "device") if on_device else ("memory", "disk")
    for place in places:
        table.add_column(place, justify="right")
    for part, estimate in parts.items():
        table.add_row(part, *_amounts(estimate, places))
    table.add_section()
    table.add_row("there is", *_amounts(there_is, places))
    data = {
        "dry_run": True,
        "parts": {part: asdict(estimate) for part, estimate in parts.items()},
        "available": asdict(there_is),
    }
    return Result(data, table)


def _amounts(estimate: Estimate, places: Sequence[str]) -> list[str]:
    return [in_words(asdict(estimate)[f"{place}_bytes"]) for place in places]
