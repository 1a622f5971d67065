"""The table on the screen, as Markdown, and as a picture of each calibration text."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from benchmarks.markdown_table import markdown_table
from benchmarks.pruning.cell import PruningDocument, read_cells
from benchmarks.pruning.chart import draw
from benchmarks.pruning.summary import AIMS, MOST_TIMES, SAME_MEMORY, Finding, PruningRow, find_best, summarise
from benchmarks.quality.arms import ratio_title
from benchmarks.quality.models import MODELS
from shearling.command_line import Result
from shearling.errors import ArtefactMissing
from shearling.strict_json import write_text

REPORT_FILE = "report.md"
HEADINGS = ("pruned", "by", "reads", "task", "gone", "general", "gone", "min", "x Wanda", "GiB")
WORDS = ("by", "reads")


def write_report(output: Path) -> Result:
    """Write `report.md` and a picture of each calibration text from the cells that are there.

    Raises:
        ArtefactMissing: there are none.
        DocumentInvalid: one is malformed.
    """
    cells = read_cells(output)
    if not cells:
        raise ArtefactMissing("no finished cell here", where=output, remedy="Run it without --report")
    rows = summarise(cells)
    findings = [_sentence(finding) for finding in find_best(rows)]
    parts = ["# What pruning costs before any training\n", f"{_EXPLANATION}\n", f"{_machine(cells)}\n"]
    parts.append(markdown_table(HEADINGS, [_cells_of(row) for row in rows], words=WORDS))
    parts += [f"{textwrap.fill(sentence, 100)}\n" for sentence in findings]
    for reading in dict.fromkeys(row.cell.reading for row in rows if row.cell.reading):
        own = [row for row in rows if row.cell.reading in ("", reading)]
        if draw(own, output, stem=reading, title=f"{_model_title(cells[0].model)}, {_TEXTS[reading]}"):
            parts.append(f"![Excess that is gone by time, {_TEXTS[reading]}]({reading}.svg)\n")
    write_text(output / REPORT_FILE, "\n".join(parts))
    screen = Group(_screen(rows), *(Text(sentence) for sentence in findings))
    return Result({"report": str(output / REPORT_FILE), "cells": len(cells)}, screen)


_TEXTS = {"task": "rows of the task", "general": "a general text", "both": "both texts"}
_EXPLANATION = f"""\
Bits per byte are those of unseen rows of the task ("task") and of the general text that is held
back ("general"), each with the share of the excess over the dense model that Wanda has, with the
same ratio and calibration text, and that is gone. "reads" is the calibration text. "min" is wall
time of the pruning alone, libraries loaded; "x Wanda" a multiple of Wanda's time: of processor
time where there was one thread, so that other processes on the machine do not count. "GiB" is the
most that the process held, libraries included; what is at most {SAME_MEMORY} times Wanda's counts as no
more."""


def _model_title(model: str) -> str:
    return MODELS[model]().title if model in MODELS else model


def _machine(cells: Sequence[PruningDocument]) -> str:
    ran = sorted({f"{cell.processor}, {cell.precision}, threads: {cell.threads}" for cell in cells})
    return textwrap.fill(f"**{_model_title(cells[0].model)}; {'; '.join(ran)}.**", 100)


def _cells_of(row: PruningRow) -> tuple[str, ...]:
    cell = row.cell
    pruned = cell.ratio != ""
    return (
        row.ratio_title,
        row.title,
        cell.reading,
        f"{cell.task_bits_per_byte:.3f}",
        _percent(row.task_gone),
        f"{cell.general_bits_per_byte:.3f}",
        _percent(row.general_gone),
        f"{cell.seconds / 60:.1f}" if pruned else "",
        "" if row.times is None else f"{row.times:.1f}",
        f"{cell.peak_bytes / 2**30:.2f}" if pruned else "",
    )


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}".replace("%", " %")


def _screen(rows: Sequence[PruningRow]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0))
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in WORDS else "right", overflow="fold")
    for row in rows:
        table.add_row(*_cells_of(row))
    return table


def _sentence(finding: Finding) -> str:
    """What is best, and how far that is from the aim."""
    where = f"{ratio_title(finding.ratio)}, {_TEXTS[finding.reading]}"
    if finding.best is None:
        return f"{where}: nothing but Wanda within {MOST_TIMES:g} times its time."
    aim = AIMS.get(finding.ratio)
    aimed = "" if aim is None else f" (aim: {_percent(aim)})"
    most = f"{where}: within {MOST_TIMES:g} times Wanda's time {_brought(finding.best)}, most{aimed}"
    if finding.frugal is None:
        return f"{most}; nothing within its memory as well."
    if finding.frugal is finding.best:
        return f"{most}, within its memory as well."
    return f"{most}; within its memory as well {_brought(finding.frugal)}."


def _brought(row: PruningRow) -> str:
    return f'"{row.title}" brings {_percent(row.task_gone)} back'
