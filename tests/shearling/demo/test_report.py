"""The closing screen and the page: complete, self-contained, and careful in what they say."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from shearling.chart import Point, ticks
from shearling.chart import scatter as draw_scatter
from shearling.demo.documents import Spread
from shearling.demo.shears.findings import describe
from shearling.demo.shears.layout import ShearsLayout
from shearling.demo.shears.outcome import LABELS, ShearsOutcome
from shearling.demo.shears.report import render_accuracy_speed, render_report
from shearling.demo.shears.rows import ShearsRow
from shearling.demo.shears.screen import closing_screen
from shearling.strict_json import read_document, write_document
from tests.support.outcomes import make_outcome, make_row, make_speed


def test_page_needs_nothing_from_outside():
    page = render_report(make_outcome())
    assert not re.search(r'(src|href)="(?!export/report\.html)', page)
    assert "url(" not in page
    assert "@import" not in page
    assert "prefers-color-scheme: dark" in page
    assert "someone/&lt;model&gt; &amp; more" in page
    for label in LABELS.values():
        assert label in page


def test_charts_are_well_formed_and_finite():
    charts = re.findall(r"<svg.*?</svg>", render_report(make_outcome()), flags=re.DOTALL)
    assert len(charts) == 5
    for chart in charts:
        assert "nan" not in chart
        assert "inf" not in chart
        assert ElementTree.fromstring(chart).tag == "svg"


def test_the_chart_of_accuracy_against_speed_stands_alone():
    chart = ElementTree.fromstring(render_accuracy_speed(make_outcome()))
    names = {"svg": "http://www.w3.org/2000/svg"}
    # One dot for each model that was timed, and colours of its own for a light and for a dark page.
    assert len(chart.findall("svg:circle", names)) == 2
    style = chart.find("svg:style", names).text
    used = set(re.findall(r"var\((--\w+)\)", ElementTree.tostring(chart, encoding="unicode")))
    assert used <= set(re.findall(r"(--\w+):", style))
    assert "prefers-color-scheme: dark" in style


def test_smoke_runs_say_so():
    assert "A smoke run" in render_report(make_outcome("smoke"))
    assert "A smoke run" not in render_report(make_outcome())


@pytest.mark.parametrize("width", [80, 100])
def test_screen_fits_one_page(width):
    stream = io.StringIO()
    layout = ShearsLayout(Path("runs/demo"))
    Console(file=stream, width=width).print(closing_screen(make_outcome("smoke"), layout))
    shown = stream.getvalue().splitlines()
    assert len(shown) <= 30
    assert max(map(len, shown)) <= width
    assert "…" not in stream.getvalue()
    assert str(layout.report) in stream.getvalue()
    command = shown[next(index for index, line in enumerate(shown) if line.startswith("Try it:")) :][:3]
    assert [line.rstrip()[-1] for line in command] == ["\\", "\\", "'"], "it is broken where it can be typed on"
    for label in LABELS.values():
        assert label in stream.getvalue()


def test_summary_reads_back(tmp_path):
    write_document(tmp_path / "summary.json", make_outcome())
    assert read_document(tmp_path / "summary.json", ShearsOutcome) == make_outcome()


def _said(**accuracies):
    changes = {role: {"accuracy": value} for role, value in accuracies.items()}
    return " ".join(describe([make_row(role, **changes.get(role, {})) for role in LABELS], 1000))


def test_findings_follow_the_numbers():
    said = _said(lora=0.82, sparse=0.70, ours=0.81)
    assert "82.0% becomes 70.0%." in said
    assert "81.0%, 11.0 points above that" in said
    assert "not distinguishable (-1.0 points) from dense + LoRA" in said


def test_findings_do_not_flatter():
    said = _said(lora=0.82, sparse=0.81, ours=0.70)
    assert "82.0% becomes 81.0%, a difference that these rows cannot tell from chance." in said
    assert said.count("points below") == 2


def test_speed_is_claimed_only_outside_the_interval():
    slower = make_speed(Spread(median=1.3, low=1.2, high=1.4))
    rows = [make_row(role, **({"speed": slower} if role == "packed" else {})) for role in LABELS]
    assert "a token takes 1.30 times as long" in " ".join(describe(rows, 1000))
    assert "no difference in speed" in _said()


def _peer(name: str, accuracy: float, tokens_per_s: float, *, own_operators: bool = False) -> ShearsRow:
    speed = make_speed(Spread(median=1, low=1, high=1), tokens_per_s=tokens_per_s)
    speed = speed.model_copy(update={"own_operators": own_operators})
    return make_row("peer", label=name, accuracy=accuracy, speed=speed)


def test_peers_stand_in_the_table_and_on_the_chart() -> None:
    long = "a-file-with-a-name-that-no-table-has-room-for, FLASH_ATTENTION=NO"
    outcome = make_outcome(peers=[_peer("Q4_0", 0.79, 80.0), _peer(long, 0.5, 10.0)])
    stream = io.StringIO()
    Console(file=stream, width=80).print(closing_screen(outcome, ShearsLayout(Path("runs/demo"))))
    shown = stream.getvalue().splitlines()
    assert max(map(len, shown)) <= 80
    assert "…" not in stream.getvalue()
    lines = [line.split() for line in shown]
    assert next(line for line in lines if line[:1] == ["Q4_0"])[1:3] == ["79.0", "(77-83)"]
    page = render_report(outcome)
    assert long in page
    assert " minutes with 2 peers on " in stream.getvalue()
    assert " minutes with 2 peers)" in page
    chart = ElementTree.fromstring(render_accuracy_speed(outcome))
    names = {"svg": "http://www.w3.org/2000/svg"}
    assert len(chart.findall("svg:circle", names)) == 4
    # From dense + LoRA, the most accurate, to the fastest; sparse int8 is as fast as the first and less accurate.
    front = chart.find("svg:polyline", names)
    assert front is not None
    assert len(front.attrib["points"].split()) == 2


@pytest.mark.parametrize(
    ("accuracy", "tokens_per_s", "passes"),
    [(0.82, 50.0, True), (0.81, 51.0, True), (0.81, 50.0, False), (0.99, 49.0, False), (0.80, 99.0, False)],
)
def test_a_peer_that_passes_ours_is_named(accuracy: float, tokens_per_s: float, passes: bool) -> None:
    rows = [*map(make_row, LABELS), _peer("Q4_0", accuracy, tokens_per_s), _peer("Q8_0", 0.1, 1.0)]
    last = describe(rows, 1000)[-1]
    assert last.endswith(": Q4_0." if passes else "by what was measured.")
    assert ("none" in last) is not passes


def test_what_our_operators_run_is_ours_and_no_peer_that_passes() -> None:
    peers = [_peer("packed", 0.9, 99.0, own_operators=True), _peer("Q8_0", 0.1, 1.0)]
    assert "none" in describe([*map(make_row, LABELS), *peers], 1000)[-1]
    chart = ElementTree.fromstring(render_accuracy_speed(make_outcome(peers=peers)))
    marks = [dot.attrib["class"].strip() for dot in chart.iter("{http://www.w3.org/2000/svg}circle")]
    assert sorted(marks) == ["dot ours", "dot ours", "dot plain", "dot plain"]


def test_nothing_is_said_of_peers_where_there_are_none() -> None:
    assert "peers" not in _said()
    assert " minutes)" in render_report(make_outcome())


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_lie_within(low, width):
    values = ticks(low, low + width)
    assert 1 <= len(values) <= 11
    tolerance = 1e-6 * max(abs(low), width, 1)
    assert all(low - tolerance <= value <= low + width + tolerance for value in values)


def test_one_point_is_a_chart():
    drawing = ElementTree.fromstring(draw_scatter([Point(1.0, 2.0, 2.0, 2.0)], title="t", x_label="x", y_label="y"))
    assert len([*drawing.iter("circle")]) == 1


def test_labels_of_a_crowd_stand_near_their_marks_and_apart() -> None:
    crowd = [
        Point(x, 85.0 + 0.1 * x % 1, 83.0, 87.0, label=f"model-{x}") for x in (70, 73, 100, 101, 150, 176, 229, 257)
    ]
    drawing = ElementTree.fromstring(draw_scatter(crowd, title="t", x_label="x", y_label="y"))
    marks = [(float(element.attrib["cx"]), float(element.attrib["cy"])) for element in drawing.iter("circle")]
    labels = [element for element in drawing.iter("text") if (element.text or "").startswith("model-")]
    assert len(labels) == len(marks) == len(crowd)
    boxes = []
    for label, (mark_x, mark_y) in zip(labels, marks, strict=True):
        x, y, width = float(label.attrib["x"]), float(label.attrib["y"]), 6.0 * len(label.text or "")
        assert abs(x - mark_x) <= 11
        assert abs(y - 4 - mark_y) <= 43
        boxes.append((x - width, x, y) if label.attrib["class"] == "end" else (x, x + width, y))
    for place, (left, right, y) in enumerate(boxes):
        assert left >= 60
        assert right <= 560
        for other_left, other_right, other_y in boxes[:place]:
            assert right <= other_left or other_right <= left or abs(y - other_y) >= 13
