"""The picture of one model's rows: accuracy and bits per byte by how much is pruned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.picture import INK, new_picture, save_picture
from benchmarks.quality.arms import BASELINE
from benchmarks.quality.summary import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SPREAD = 0.5
"""Share of the distance between two ratios that the marks of one ratio take."""


def draw(rows: Sequence[Row], directory: Path, *, stem: str, title: str) -> None:
    """Write `STEM.png` and `STEM.svg`.

    Args:
        rows: of one model.
        directory: where the files go.
        stem: of their names.
        title: above the picture.
    """
    language = any(row.after is not None for row in rows)
    figure = new_picture(11 if language else 6.5, 5)
    panels = figure.subplots(1, 2 if language else 1, squeeze=False)[0]
    _panel(panels[0], rows, value=lambda row: 100 * row.accuracy.mean, error=_accuracy_error)
    panels[0].set_ylabel("accuracy, % of unseen rows")
    if language:
        _panel(panels[1], rows, value=lambda row: row.after, error=lambda row: None)
        panels[1].set_ylabel("bits per byte of general text, after training")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=4, fontsize="small")
    figure.suptitle(title)
    save_picture(figure, directory, stem=stem)


def _accuracy_error(row: Row) -> float | None:
    return None if row.accuracy.stderr is None else 100 * row.accuracy.stderr


def _panel(
    axes: Axes, rows: Sequence[Row], *, value: Callable[[Row], float | None], error: Callable[[Row], float | None]
) -> None:
    pruned = [row for row in rows if row.key.ratio]
    ratios = list(dict.fromkeys(row.key.ratio_title for row in pruned))
    titles = list(dict.fromkeys(row.key.title for row in pruned))
    for index, title in enumerate(titles):
        own = [(row, height) for row in pruned if row.key.title == title and (height := value(row)) is not None]
        shift = SPREAD * ((index + 0.5) / len(titles) - 0.5)
        axes.errorbar(
            [ratios.index(row.key.ratio_title) + shift for row, _ in own],
            [height for _, height in own],
            yerr=[error(row) or 0.0 for row, _ in own],
            fmt="o",
            capsize=3,
            label=title,
        )
    for row in rows:
        height = value(row)
        if row.key.arm == BASELINE and row.key.is_baseline and height is not None:
            axes.axhline(height, color=INK, linewidth=1, label=row.key.title)
    axes.set_xticks(range(len(ratios)), ratios)
    axes.set_xlabel("pruned; bars: standard error over seeds")
    axes.grid(alpha=0.25, axis="y")
