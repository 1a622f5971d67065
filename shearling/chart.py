"""Small charts as SVG, inline or as a file, that follow the reader's colours, light or dark, and need nothing from
outside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal, NamedTuple

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 16, 46
RADIUS = 5
LINE, CHARACTER = 14, 6.6
"""Height of a label, and about the width of one of its characters."""

Mark = Literal["plain", "ours", "muted"]

COLOURS = """
:root { --paper: #fbfaf7; --ink: #22262b; --soft: #626a73; --rule: #dcd8d0; --ours: #b4552d; --plain: #33658a;
  --muted: #a3abb2; --card: #ffffff; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16191d; --ink: #e7e5e0; --soft: #9aa3ad; --rule: #343a41; --ours: #ea8f63; --plain: #7fb2d9;
    --muted: #6b747d; --card: #1e2227; }
}
"""
SHAPES = """
svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
.end { text-anchor: end; } .middle { text-anchor: middle; }
.axis { fill: none; stroke: var(--soft); } .grid { stroke: var(--rule); }
.line { fill: none; stroke-width: 2; stroke: var(--plain); } .line.ours { stroke: var(--ours); }
.line.muted { stroke: var(--muted); }
.dot { fill: var(--plain); } .dot.ours { fill: var(--ours); }
.dot.muted { fill: none; stroke: var(--muted); stroke-width: 2; }
.bar { fill: var(--plain); } .bar.ours { fill: var(--ours); }
.whisker { stroke: var(--plain); stroke-width: 2; } .whisker.ours { stroke: var(--ours); }
.bar + .whisker { stroke: var(--ink); }
"""
"""Of every chart, for the page that it stands in."""


@dataclass(frozen=True)
class Point:
    """A mark of a chart.

    Attributes:
        low, high: of its interval on the y axis; equal to y where there is none.
        label: written beside it; empty for none.
        note: shown while the pointer rests on it.
        mark: its colour.
    """

    x: float
    y: float
    low: float
    high: float
    label: str = ""
    note: str = ""
    mark: Mark = "plain"


@dataclass(frozen=True)
class Series:
    """A line of a chart."""

    name: str
    points: tuple[tuple[float, float], ...]
    mark: Mark = "plain"


def scatter(
    points: Sequence[Point], *, title: str, x_label: str, y_label: str, line: Sequence[tuple[float, float]] = ()
) -> str:
    """Points with intervals, and optionally a line through some of them."""
    frame = _Frame([point.x for point in points], [value for point in points for value in (point.low, point.high)])
    parts = [frame.axes(x_label, y_label)]
    if line:
        parts.append(f'<polyline class="line muted" points="{frame.path(line)}"/>')
    marks = [(frame.x(point.x), frame.y(point.y)) for point in points]
    taken = [_Box(x - RADIUS, x + RADIUS, y - RADIUS, y + RADIUS) for x, y in marks]
    for point in points:
        x, y = frame.x(point.x), frame.y(point.y)
        if point.high > point.low:
            parts.append(
                f'<line class="whisker {point.mark}" x1="{x:.1f}" x2="{x:.1f}" '
                f'y1="{frame.y(point.low):.1f}" y2="{frame.y(point.high):.1f}"/>'
            )
        parts.append(
            f'<circle class="dot {point.mark}" cx="{x:.1f}" cy="{y:.1f}" '
            f'r="{RADIUS}"><title>{escape(point.note or point.label)}</title></circle>'
        )
        if point.label:
            parts.append(_label(point.label, x, y, taken))
    return _svg(title, parts)


def lines(series: Sequence[Series], *, title: str, x_label: str, y_label: str) -> str:
    """Lines with a legend."""
    frame = _Frame([x for item in series for x, _ in item.points], [y for item in series for _, y in item.points])
    parts = [frame.axes(x_label, y_label)]
    for index, item in enumerate(series):
        parts.append(f'<polyline class="line {item.mark}" points="{frame.path(item.points)}"/>')
        y = TOP + 14 + 18 * index
        parts.append(
            f'<line class="line {item.mark}" x1="{WIDTH - 214}" x2="{WIDTH - 190}" y1="{y - 4}" y2="{y - 4}"/>'
        )
        parts.append(f'<text x="{WIDTH - 184}" y="{y}">{escape(item.name)}</text>')
    return _svg(title, parts)


def bars(points: Sequence[Point], *, title: str, x_label: str) -> str:
    """Horizontal bars from zero, each with the interval of its value; x is unused."""
    highest = max(point.high for point in points) * 1.05 or 1.0
    left, row = 190, (HEIGHT - TOP - BOTTOM) / len(points)
    scale = (WIDTH - left - 70) / highest
    parts = []
    for index, point in enumerate(points):
        y = TOP + row * index
        middle = y + row / 2
        parts.append(f'<text class="end" x="{left - 8}" y="{middle + 4:.1f}">{escape(point.label)}</text>')
        parts.append(
            f'<rect class="bar {point.mark}" x="{left}" y="{y + row * 0.2:.1f}" '
            f'width="{point.y * scale:.1f}" height="{row * 0.6:.1f}">'
            f"<title>{escape(point.note)}</title></rect>"
        )
        low, high = left + point.low * scale, left + point.high * scale
        parts.append(f'<line class="whisker" x1="{low:.1f}" x2="{high:.1f}" y1="{middle:.1f}" y2="{middle:.1f}"/>')
        parts.append(f'<text x="{high + 6:.1f}" y="{middle + 4:.1f}">{point.y:.1f}</text>')
    parts.append(f'<text class="middle" x="{(left + WIDTH) / 2:.0f}" y="{HEIGHT - 10}">{escape(x_label)}</text>')
    return _svg(title, parts)


def as_file(svg: str) -> str:
    """A chart as a file of its own, on a card, with the colours that it has in a page."""
    inside = f"<style>{COLOURS}{SHAPES}</style>" + f'<rect width="{WIDTH}" height="{HEIGHT}" fill="var(--card)"/>'
    opening, rest = svg.split(">", 1)
    named = opening.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"')
    return f"{named}>{inside}{rest}\n"


def ticks(low: float, high: float, *, count: int = 5) -> list[float]:
    """Round numbers within [low, high], about `count` of them."""
    raw = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(magnitude * factor for factor in (1, 2, 5, 10) if magnitude * factor >= raw)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 10) for index in range(first, math.floor(high / step + 1e-9) + 1)]


class _Frame:
    """Axes, and from values to pixels."""

    def __init__(self, xs: Sequence[float], ys: Sequence[float]) -> None:
        self._x_low, self._x_high = _padded(xs)
        self._y_low, self._y_high = _padded(ys)

    def x(self, value: float) -> float:
        return LEFT + (value - self._x_low) / (self._x_high - self._x_low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self._y_low) / (self._y_high - self._y_low) * (HEIGHT - TOP - BOTTOM)

    def path(self, points: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)

    def axes(self, x_label: str, y_label: str) -> str:
        bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
        parts = [f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{right}"/>']
        parts += [
            f'<text class="middle" x="{self.x(value):.1f}" y="{bottom + 17}">{value:g}</text>'
            for value in ticks(self._x_low, self._x_high)
        ]
        for value in ticks(self._y_low, self._y_high):
            y = self.y(value)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text class="end" x="{LEFT - 8}" y="{y + 4:.1f}">{value:g}</text>')
        middle_x, middle_y = (LEFT + right) / 2, (TOP + bottom) / 2
        parts.append(f'<text class="middle" x="{middle_x:.0f}" y="{HEIGHT - 8}">{escape(x_label)}</text>')
        parts.append(
            f'<text class="middle" transform="translate(14 {middle_y:.0f}) rotate(-90)">{escape(y_label)}</text>'
        )
        return "".join(parts)


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    margin = 0.07 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


class _Box(NamedTuple):
    """A rectangle in pixels."""

    left: float
    right: float
    top: float
    bottom: float

    def meets(self, other: _Box) -> bool:
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


def _label(text: str, x: float, y: float, taken: list[_Box]) -> str:
    """Beside a mark, as near as other labels and marks leave room; the first choice is the side with more of it."""
    sides = ("end", "start") if x > WIDTH / 2 else ("start", "end")
    shifts = sorted((sign * LINE * line for line in range(HEIGHT // LINE) for sign in (1, -1)), key=abs)
    places = [(side, _label_box(text, x, y + shift, side)) for shift in shifts for side in sides]
    free = [
        (side, box)
        for side, box in places
        if box.left >= LEFT and box.right <= WIDTH and box.top >= 0 and box.bottom <= HEIGHT - BOTTOM
        if not any(map(box.meets, taken))
    ]
    side, box = free[0] if free else places[0]
    taken.append(box)
    anchor = box.right if side == "end" else box.left
    return f'<text class="{side}" x="{anchor:.1f}" y="{box.bottom - 4:.1f}">{escape(text)}</text>'


def _label_box(text: str, x: float, y: float, side: str) -> _Box:
    width = CHARACTER * len(text)
    left = x + 10 if side == "start" else x - 10 - width
    return _Box(left, left + width, y - LINE / 2, y + LINE / 2)


def _svg(title: str, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
