"""Distributions as strip charts: one row for each model or benchmark, one dot for each value, median and interval
over them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from serve.bench.statistics import Estimate, percentile

WIDTH, LEFT, ROW = 760, 220, 34
DOTS = 400
"""More dots than these show nothing more: then they are evenly spaced quantiles."""


@dataclass(frozen=True)
class ChartRow:
    """One line of a chart, in its unit."""

    label: str
    values: Sequence[float]
    estimate: Estimate


@dataclass(frozen=True)
class Mark:
    """A row in pixels.

    Attributes:
        y: of its middle; dots: x and y of each value.
        low, median, high: x.
        text: the estimate in words.
    """

    label: str
    y: float
    dots: tuple[tuple[float, float], ...]
    low: float
    median: float
    high: float
    text: str


@dataclass(frozen=True)
class Chart:
    """What a template draws.

    Attributes:
        ticks: x and text.
        beyond: values right of the axis, which ends at the 99th percentile.
    """

    title: str
    height: int
    marks: tuple[Mark, ...]
    ticks: tuple[tuple[float, str], ...]
    beyond: int
    width: int = WIDTH


def strip_chart(title: str, rows: Sequence[ChartRow]) -> Chart:
    """Lay out one chart with a common axis.

    Args:
        title: with the unit.
        rows: at least one, each with at least one value.
    """
    values = np.concatenate([np.asarray(row.values, dtype=np.float64) for row in rows])
    bounds = [bound for row in rows for bound in (row.estimate.low, row.estimate.high)]
    left = min(float(values.min()), *bounds)
    right = max(percentile(values.tolist(), 0.99), *bounds)
    span = (right - left) or abs(right) or 1.0
    left, right = left - 0.04 * span, right + 0.04 * span

    def place(value: float) -> float:
        return round(LEFT + (WIDTH - LEFT - 20) * (value - left) / (right - left), 1)

    marks = tuple(_mark(row, y=ROW * (index + 0.8), place=place, right=right) for index, row in enumerate(rows))
    ticks = tuple((place(value), f"{value:.4g}") for value in np.linspace(left, right, 6)[1:-1])
    return Chart(title, ROW * (len(rows) + 1) + 16, marks, ticks, int((values > right).sum()))


def _mark(row: ChartRow, *, y: float, place: Callable[[float], float], right: float) -> Mark:
    values = np.asarray(row.values, dtype=np.float64)
    if values.size > DOTS:
        values = np.quantile(values, np.linspace(0, 1, DOTS))
    heights = np.random.default_rng(0).uniform(-9, 9, size=values.size)
    dots = tuple(
        (place(float(value)), round(y + float(height), 1))
        for value, height in zip(values, heights, strict=True)
        if value <= right
    )
    estimate = row.estimate
    text = f"{estimate.median:.4g} [{estimate.low:.4g}, {estimate.high:.4g}], {estimate.samples} values"
    return Mark(row.label, y, dots, place(estimate.low), place(estimate.median), place(estimate.high), text)
