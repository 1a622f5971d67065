"""The page: one file without scripts, which loads itself again while the search runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from search.cost_words import COSTS
from search.evidence import find_held_back
from search.front import distinct, pareto_front
from search.journal import Record
from search.strategies.grid import Grid
from search.view.hypervolume import hypervolumes
from search.view.importance import estimate_importance
from shearling.chart import COLOURS, SHAPES, Point, Series, lines, scatter
from shearling.page import render_page

TEMPLATE = Path(__file__).with_name("search.html.jinja")
REFRESH_S = 5
MOST_OF_FRONT = 25
"""Rows of the table of the front."""

State = Literal["running", "finished", "stopped"]


@dataclass(frozen=True)
class Status:
    """What the page says at the top.

    Attributes:
        phase: what is being done; or how it ended.
        done: evaluations of the algorithm so far.
        planned: most that it will ask for.
        elapsed_s: of this process.
        left_s: estimate; None where nothing is known of it yet.
        updated: the time.
    """

    state: State
    phase: str
    done: int
    planned: int
    elapsed_s: float
    left_s: float | None
    updated: str


@dataclass(frozen=True)
class Subject:
    """What is searched.

    Attributes:
        title: of the page.
        task: that candidates are measured on.
        groups: the id of each group of the space, such as `layers.3.qkv`.
        grid: of the candidates.
    """

    title: str
    task: str
    groups: tuple[str, ...]
    grid: Grid


class Cell(NamedTuple):
    """A group in the table of importance: points of accuracy that its smallest value loses, and its shade."""

    points: str
    shade: float
    gains: bool


@dataclass(frozen=True)
class ImportanceTable:
    """A row for each layer, a column for each template."""

    templates: tuple[str, ...]
    totals: tuple[Cell, ...]
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]
    explained: float


@dataclass(frozen=True)
class PageContent:
    """What the template shows."""

    subject: Subject
    status: Status
    refresh_s: int | None
    charts: tuple[tuple[str, str, str], ...] = ()
    importance: ImportanceTable | None = None
    front: tuple[tuple[str, ...], ...] = ()
    headings: tuple[str, ...] = ()
    best: str | None = None
    style: str = field(default=COLOURS + SHAPES)


def render_search_page(subject: Subject, status: Status, records: Sequence[Record], best: Record | None) -> str:
    """The whole page.

    Args:
        subject: what is searched.
        status: how far it is.
        records: of the journal.
        best: once it is known.
    """
    explored = [record for record in records if record.part == "explored"]
    front = pareto_front(explored)
    content = PageContent(
        subject=subject,
        status=status,
        refresh_s=REFRESH_S if status.state == "running" else None,
        charts=_charts(explored, front, best, subject) if explored else (),
        importance=_importance(explored, subject),
        headings=_headings(explored),
        front=tuple(_front_row(record, records) for record in front[:MOST_OF_FRONT]),
        best=None if best is None else best.id,
    )
    return render_page(TEMPLATE, page=content, show_duration=show_duration)


def show_duration(seconds: float) -> str:
    """`3 min`, in the unit that suits."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _charts(
    explored: Sequence[Record], front: Sequence[Record], best: Record | None, subject: Subject
) -> tuple[tuple[str, str, str], ...]:
    """Title, SVG and what it shows."""
    kind = COSTS[explored[0].axis_kind]
    on_front, chosen = {record.choice_idx for record in front}, None if best is None else best.choice_idx
    points = [_point(record, on_front=record.choice_idx in on_front, chosen=chosen) for record in distinct(explored)]
    accuracy = f"accuracy, % of {explored[0].n_eval} rows"
    scattered = scatter(points, title="Accuracy over cost", x_label=kind.name, y_label=accuracy, line=_steps(front))
    volumes = tuple((float(number), volume) for number, volume in enumerate(hypervolumes(explored), start=1))
    saved = explored[0].cost_kind != "none"
    grown = lines(
        [Series("hypervolume" if saved else "best accuracy", volumes, "ours")],
        title="Progress",
        x_label="evaluations",
        y_label="share dominated" if saved else "accuracy",
    )
    return (
        (
            "Front",
            scattered,
            f"Each sub-network on the first {explored[0].n_eval} choosing rows of {subject.task}; "
            f"{len(front)} of {len(points)} are on the front.",
        ),
        (
            "Hypervolume" if saved else "Best so far",
            grown,
            "The share of the plane, up to a little more than the dearest costs, that some sub-network dominates. "
            "Where it is flat for long, more evaluations bring little."
            if saved
            else "Ranks are merged and cost nothing at inference: accuracy alone counts.",
        ),
    )


def _point(record: Record, *, on_front: bool, chosen: tuple[int, ...] | None) -> Point:
    accuracy = 100 * record.accuracy
    best = record.choice_idx == chosen
    words = COSTS[record.axis_kind]
    note = f"{record.id}: {accuracy:.1f} %, {record.axis_value:.3g} {words.unit}"
    mark: Literal["plain", "ours", "muted"] = "ours" if best else "plain" if on_front else "muted"
    return Point(record.axis_value, accuracy, accuracy, accuracy, "best" if best else "", note, mark)


def _steps(front: Sequence[Record]) -> list[tuple[float, float]]:
    corners: list[tuple[float, float]] = []
    for record in front:
        if corners:
            corners.append((record.axis_value, corners[-1][1]))
        corners.append((record.axis_value, 100 * record.accuracy))
    return corners


def _headings(explored: Sequence[Record]) -> tuple[str, ...]:
    if not explored:
        return ()
    cost = COSTS[explored[0].axis_kind].name
    return ("row", "sub-network", cost, f"accuracy on {explored[0].n_eval} rows", "on held-back rows")


def _front_row(record: Record, records: Sequence[Record]) -> tuple[str, ...]:
    held_back = find_held_back(record, records)
    return (
        str(record.i),
        record.id,
        f"{record.axis_value:.4g}",
        f"{record.accuracy:.1%}",
        "" if held_back is None else f"{held_back.accuracy:.1%} of {held_back.n_eval}",
    )


def _importance(explored: Sequence[Record], subject: Subject) -> ImportanceTable | None:
    candidates = distinct(explored)
    found = estimate_importance(
        [record.choice_idx for record in candidates], [record.accuracy for record in candidates], subject.grid
    )
    if found is None:
        return None
    by_place: dict[str, dict[str, float]] = defaultdict(dict)
    for name, loss, size in zip(subject.groups, found.losses, subject.grid.sizes, strict=True):
        _, layer, template = name.split(".", 2)
        if size > 1:
            by_place[layer][template] = loss
    templates = tuple(dict.fromkeys(template for row in by_place.values() for template in row))
    most = max((abs(loss) for row in by_place.values() for loss in row.values()), default=0.0) or 1.0
    totals = {template: sum(row.get(template, 0.0) for row in by_place.values()) for template in templates}
    highest = max((abs(total) for total in totals.values()), default=0.0) or 1.0
    return ImportanceTable(
        templates=templates,
        totals=tuple(_cell(totals[template], highest) for template in templates),
        rows=tuple(
            (
                layer,
                tuple(_cell(row[template], most) if template in row else None for template in templates),
            )
            for layer, row in by_place.items()
        ),
        explained=found.explained,
    )


def _cell(loss: float, most: float) -> Cell:
    return Cell(f"{100 * loss:+.2f}", round(abs(loss) / most, 3), loss < 0)
