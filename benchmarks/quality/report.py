"""The table on the screen, as Markdown, and as a picture."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from rich.console import Group
from rich.table import Table

from benchmarks.markdown_table import markdown_table
from benchmarks.quality.cell import read_cells
from benchmarks.quality.chart import draw
from benchmarks.quality.models import MODELS
from benchmarks.quality.summary import Predictions, Row, SeedMean, TaskScore, judge_predictions, summarise
from shearling.command_line import Result
from shearling.errors import ArtefactMissing
from shearling.strict_json import write_text

REPORT_FILE = "report.md"
HEADINGS = ("pruned", "arm", "cells", "accuracy", "vs dense", "bits/byte", "min")
"""Of the table; bits per byte are those before and after training, or those that there are."""
WORDS = ("arm",)


def write_report(output: Path) -> Result:
    """Write `report.md` and a picture of each model from the cells that are there.

    Raises:
        ArtefactMissing: there are none.
        DocumentInvalid: one is malformed.
    """
    cells = read_cells(output)
    rows = summarise(cells)
    if not rows:
        raise ArtefactMissing("no finished cell here", where=output, remedy="Run it without --report")
    models = sorted({row.key.model for row in rows})
    parts, tables = [f"{_EXPLANATION}\n"], []
    for model in models:
        own = [row for row in rows if row.key.model == model]
        draw(own, output, stem=model, title=_model_title(model))
        predictions = judge_predictions(cell for cell in cells if cell.model == model)
        tables.append(_screen(own, predictions, title=_model_title(model)))
        parts += [f"## {_model_title(model)}\n", markdown_table(HEADINGS, [_cells_of(row) for row in own], words=WORDS)]
        parts += [f"![Accuracy and bits per byte by sparsity]({model}.svg)\n", "### By task\n", _by_task(own)]
        parts += [_differences(own)]
        parts += [f"{textwrap.fill(_describe_predictions(predictions), 100)}\n"] if predictions else []
    write_text(output / REPORT_FILE, "\n".join(["# Quality of pruned and trained models\n", *parts]))
    return Result({"report": str(output / REPORT_FILE), "cells": sum(row.cells for row in rows)}, Group(*tables))


_EXPLANATION = """\
Accuracy is in % of unseen rows, the mean over tasks and seeds. "vs dense" is the difference from
dense LoRA with the same tasks and seeds, the one that a cell began with where it did, in points,
with its standard error over seeds where all have the same tasks, and in brackets the number of
cells that have such a baseline, where these are not all. Bits per byte are those of held-back
general text, before and after training of the arm's adapters; of "adapted" and "frozen", which do
not have these yet, there is one figure. Minutes are those of a cell on the machine that measured
it: import, pruning, training and search. "adapted" is the dense model with the LoRA that an arm
begins with, and the baseline of arms that begin with none where that has no cell of its own;
"frozen" is the same, pruned and healed, before it gets elastic adapters; "packed" is the
sub-network that was found, as int8 with the sparse kernel in OpenVINO, "packed-int4" as int4. What
others serve of the baseline itself is told by the name of the file: "openvino-int8" and
"openvino-int4" in OpenVINO, the others in llama.cpp, "imatrix" with an importance matrix."""


def _model_title(model: str) -> str:
    return MODELS[model]().title if model in MODELS else model


def _cells_of(row: Row) -> tuple[str, ...]:
    difference = row.difference
    return (
        row.key.ratio_title,
        row.key.title,
        str(row.cells),
        f"{100 * row.accuracy.mean:.1f}",
        "" if difference is None or row.key.is_baseline else f"{_points(difference)}{_of(row)}",
        " ".join(f"{bits:.3f}" for bits in (row.before, row.after) if bits is not None),
        f"{row.minutes:.1f}",
    )


def _of(row: Row) -> str:
    """How many cells a difference is of, where these are not all."""
    return "" if len(row.paired) == row.cells else f" ({len(row.paired)})"


def _points(estimate: SeedMean) -> str:
    # Without the sign of a zero that was rounded to.
    return f"{round(100 * estimate.mean, 1) + 0.0:+.1f}{_error(estimate)}"


def _error(estimate: SeedMean) -> str:
    return "" if estimate.stderr is None else f" ± {100 * estimate.stderr:.1f}"


def _screen(rows: Sequence[Row], predictions: Predictions | None, *, title: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0), caption_justify="left")
    table.caption = _describe_predictions(predictions) if predictions else None
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in WORDS else "right", overflow="fold")
    for row in rows:
        table.add_row(*_cells_of(row))
    return table


def _describe_predictions(predictions: Predictions) -> str:
    return (
        f"The interval that a search predicted held the accuracy on test rows in {predictions.covered} of "
        f"{predictions.searches} searches; predicted minus found: {100 * predictions.bias:+.1f} points."
    )


def _by_task(rows: Sequence[Row]) -> str:
    tasks = sorted({task for row in rows for task in row.tasks})
    described = [
        (row.key.ratio_title, row.key.title, *(_describe(row.tasks.get(task)) for task in tasks)) for row in rows
    ]
    return (
        "Accuracy in %, with its standard error over seeds, and in brackets the 95 % interval of the rows.\n\n"
        + markdown_table(("pruned", "arm", *tasks), described, words=WORDS)
    )


def _differences(rows: Sequence[Row]) -> str:
    """What differs from the baseline task by task; nothing is said of the baseline itself."""
    compared = [row for row in rows if row.difference is not None and not row.key.is_baseline]
    tasks = sorted({task for row in compared for task in row.tasks})
    described = [
        (
            row.key.ratio_title,
            row.key.title,
            *(_difference(row.tasks.get(task)) for task in tasks),
            "" if row.more_bits is None else f"{100 * row.more_bits:+.0f}",
        )
        for row in compared
    ]
    return (
        "Points above dense LoRA with the same task and seed, with the standard error over seeds; and\n"
        "bits per byte of general text beyond its, in %, mean of the cells.\n\n"
        + markdown_table(("pruned", "arm", *tasks, "bits, %"), described, words=WORDS)
    )


def _difference(score: TaskScore | None) -> str:
    return "" if score is None or score.difference is None else _points(score.difference)


def _describe(score: TaskScore | None) -> str:
    if score is None:
        return ""
    low, high = score.interval
    return f"{100 * score.accuracy.mean:.1f}{_error(score.accuracy)} ({100 * low:.1f} to {100 * high:.1f})"
