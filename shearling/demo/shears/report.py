"""The demo's page: the closing screen with intervals and charts, in one file without outside resources."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shearling.chart import COLOURS, SHAPES, Point, Series, as_file, bars, lines, scatter
from shearling.demo.shears.outcome import ShearsOutcome
from shearling.demo.shears.rows import PEER
from shearling.page import render_page

TEMPLATE = Path(__file__).with_name("report.html.jinja")


def render_report(outcome: ShearsOutcome) -> str:
    """The page as HTML."""
    from markupsafe import Markup

    return render_page(
        TEMPLATE,
        outcome=outcome,
        charts=_charts(outcome),
        chart_style=Markup(COLOURS + SHAPES),
    )


def render_accuracy_speed(outcome: ShearsOutcome) -> str:
    """The chart that every change is judged by, as a file of its own."""
    return as_file(_speed_chart(outcome))


def _charts(outcome: ShearsOutcome) -> list[dict[str, Any]]:
    from markupsafe import Markup

    made = [
        (
            "Accuracy and speed",
            _speed_chart(outcome),
            f"95 % intervals; no model passes those on the line in both. {outcome.workload}; all models interleaved.",
        ),
        ("Accuracy and sparsity", _accuracy_chart(outcome), f"95 % Wilson intervals over {outcome.n} unseen rows."),
        (
            "The search",
            _search_chart(outcome),
            "Validation rows only. The line is the Pareto front; the filled mark was exported.",
        ),
        (
            "Training",
            _loss_chart(outcome),
            "Mean loss of a few steps at a time; the rank of every layer is drawn anew for each "
            "micro-batch on the pruned model.",
        ),
        (
            "Time per token",
            _latency_chart(outcome),
            f"Median and 95 % interval. {outcome.workload}; all models interleaved.",
        ),
    ]
    return [{"title": title, "svg": Markup(svg), "caption": caption} for title, svg, caption in made if svg]


def _speed_chart(outcome: ShearsOutcome) -> str:
    points = [
        Point(
            x=row.speed.tokens_per_s.median,
            y=100 * row.accuracy,
            low=100 * row.interval[0],
            high=100 * row.interval[1],
            label=row.label,
            note=f"{row.label}: {row.accuracy:.1%}, {row.speed.tokens_per_s.median:.0f} tokens/s",
            mark="ours" if row.is_ours else "plain",
        )
        for row in outcome.rows
        if row.speed is not None
    ]
    front = sorted(
        (row.speed.tokens_per_s.median, 100 * row.accuracy)
        for row in outcome.rows
        if row.speed is not None and not any(row.is_passed_by(other) for other in outcome.rows)
    )
    return scatter(
        points, title="Accuracy and speed", x_label="tokens/s, more is better", y_label="accuracy, %", line=front
    )


def _accuracy_chart(outcome: ShearsOutcome) -> str:
    points = [
        Point(
            x=100 * row.sparsity,
            y=100 * row.accuracy,
            low=100 * row.interval[0],
            high=100 * row.interval[1],
            label=row.label,
            note=f"{row.label}: {row.accuracy:.1%}, {row.sparsity:.1%} zeros",
            mark="ours" if row.role == "ours" else "plain",
        )
        for row in outcome.rows
        # The same weights twice would lie on one another.
        if row.role not in ("packed", PEER) and row.sparsity is not None
    ]
    return scatter(
        points, title="Accuracy and sparsity", x_label="zeros in the linear layers, %", y_label="accuracy, %"
    )


def _search_chart(outcome: ShearsOutcome) -> str:
    points = []
    # The chosen one last, so that it lies on top.
    for item in sorted(outcome.candidates, key=lambda candidate: candidate.best):
        x, y = item.adapter_params / 1e6, 100 * item.accuracy
        mark = "ours" if item.best else "plain" if item.pareto else "muted"
        note = f"{item.id}: {item.accuracy:.1%}, {item.adapter_params} parameters"
        points.append(Point(x=x, y=y, low=y, high=y, label="exported" if item.best else "", note=note, mark=mark))  # type: ignore[arg-type] # a literal, chosen above
    front = sorted((point.adapter_params / 1e6, 100 * point.accuracy) for point in outcome.candidates if point.pareto)
    return (
        scatter(points, title="The search", x_label="adapter parameters, millions", y_label="accuracy, %", line=front)
        if points
        else ""
    )


def _loss_chart(outcome: ShearsOutcome) -> str:
    series = [
        Series(
            name=name,
            points=tuple((float(step), loss) for step, loss in points),
            mark="ours" if index == 0 else "muted",
        )
        for index, (name, points) in enumerate(outcome.losses.items())
        if points
    ]
    return lines(series, title="Training loss", x_label="step", y_label="loss, nats per token") if series else ""


def _latency_chart(outcome: ShearsOutcome) -> str:
    points = [
        Point(
            x=0,
            y=1e3 * row.speed.tpot_s.median,
            low=1e3 * row.speed.tpot_s.low,
            high=1e3 * row.speed.tpot_s.high,
            label=row.label,
            note=f"{row.label}: {1e3 * row.speed.tpot_s.median:.2f} ms per token",
            mark="ours" if row.is_ours else "plain",
        )
        for row in outcome.rows
        if row.speed is not None
    ]
    return bars(points, title="Time per token", x_label="milliseconds per token, less is better")
