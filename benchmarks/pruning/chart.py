"""The picture of one calibration text: what each pruner saves of what Wanda costs, by its time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.picture import INK, new_picture, save_picture
from benchmarks.pruning.summary import AIMS, MOST_TIMES, PruningRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEAST_SHOWN = -0.1
"""Of Wanda's excess: what is far worse than Wanda stands in the table alone."""
MARKS = "os^DvP"


def draw(rows: Sequence[PruningRow], directory: Path, *, stem: str, title: str) -> bool:
    """Write `STEM.png` and `STEM.svg`, and say whether there was something to draw.

    Args:
        rows: of one calibration text.
        directory: where the files go.
        stem: of their names.
        title: above the picture.
    """
    shown = [(row, row.times, row.task_gone) for row in rows if row.times and row.task_gone is not None]
    marks = [_Mark(row, times, gone) for row, times, gone in shown if gone >= LEAST_SHOWN]
    ratios = list(dict.fromkeys(mark.row.ratio_title for mark in marks))
    if not ratios:
        return False
    titles = list(dict.fromkeys(mark.row.title for mark in marks))
    figure = new_picture(3.2 * max(2, len(ratios)), 5)
    panels = figure.subplots(1, len(ratios), squeeze=False, sharey=True)[0]
    for axes, ratio in zip(panels, ratios, strict=True):
        _panel(axes, [mark for mark in marks if mark.row.ratio_title == ratio], titles)
        axes.set_title(ratio, fontsize="medium")
    panels[0].set_ylabel("of Wanda's excess gone, % (task's text)")
    named = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    order = [title for title in titles if title in named]
    figure.legend(
        [named[title] for title in order], order, frameon=False, loc="outside lower center", ncols=4, fontsize="small"
    )
    figure.suptitle(title)
    save_picture(figure, directory, stem=stem)
    return True


class _Mark:
    def __init__(self, row: PruningRow, times: float, gone: float) -> None:
        self.row, self.times, self.gone = row, times, gone


def _panel(axes: Axes, marks: Sequence[_Mark], titles: Sequence[str]) -> None:
    """Marks of one ratio; a title looks the same in all panels."""
    for mark in marks:
        place = titles.index(mark.row.title)
        axes.plot(
            mark.times,
            100 * mark.gone,
            linestyle="none",
            marker=MARKS[place % len(MARKS)],
            color=f"C{place % 10}",
            label=mark.row.title,
        )
    axes.axvline(MOST_TIMES, color=INK, linewidth=1)
    aim = AIMS.get(marks[0].row.cell.ratio)
    if aim is not None:
        axes.axhline(100 * aim, color=INK, linewidth=1, linestyle="dotted")
    axes.set_xscale("log")
    axes.set_ylim(100 * LEAST_SHOWN, 100)
    axes.set_xlabel("times Wanda's time")
    axes.grid(alpha=0.25, axis="y")
