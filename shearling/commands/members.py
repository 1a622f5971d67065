"""`shearling members`: what a recipe or an option may name, read from the tables, other packages' members included."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pydantic
from rich.console import Group, RenderableType
from rich.table import Table

from shearling.command_line import Result
from shearling.destination import require_writable
from shearling.registry.registry import Entry
from shearling.registry.tables import TABLES
from shearling.strict_json import write_text

PREFACE = """# What there is

Every name that a recipe or an option takes, with what the stages know of it. This page is written
by `make schema` from [the tables](../shearling/registry); `shearling members` shows the same on
your machine, members of other packages included. To add one, see [extending.md](extending.md).
"""


def list_members(output: Path | None) -> Result:
    """Show every table, or write them as a page of Markdown.

    Raises:
        UsageError: no file can be written there.
    """
    if output is not None:
        require_writable(output, whole=True)
        write_text(output, members_page())
        return Result({"output": str(output)}, f"written: {output}")
    data = {title: [_facts(entry) for entry in table] for title, table in TABLES.items()}
    return Result(data, _screen())


def members_page() -> str:
    """The tables as Markdown."""
    sections = [PREFACE]
    for title, table in TABLES.items():
        rows = [_facts(entry) for entry in table]
        columns = list(rows[0])
        lines = [_line(name.replace("_", " ") for name in columns), "|---" * len(columns) + "|"]
        lines += [_line(row[column] for column in columns) for row in rows]
        sections.append(f"## {title}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(sections)


def _screen() -> RenderableType:
    tables = []
    for title, registry in TABLES.items():
        table = Table(title=title, title_justify="left", show_header=False)
        for entry in registry:
            table.add_row(entry.name, entry.summary)
        tables.append(table)
    return Group(*tables)


def _facts(entry: Entry) -> dict[str, str]:
    """Every attribute of a record in words; of implementations, which are code, only what they are named for."""
    facts: dict[str, str] = {}
    for field in dataclasses.fields(entry):
        value = getattr(entry, field.name)
        if field.name == "implementation":
            facts |= {"implemented for": _words(value)} if isinstance(value, Mapping) else {}
        # What is typed `Any` names further code.
        elif field.type != "Any":
            facts[field.name] = _words(value)
    return facts


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value == ():
        return "-"
    if isinstance(value, pydantic.BaseModel):
        return ", ".join(f"{name} {limit:g}" for name, limit in value.model_dump(exclude_none=True).items())
    if isinstance(value, Mapping):
        return ", ".join(value) or "-"
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("*", "\\*") for cell in cells) + " |"
