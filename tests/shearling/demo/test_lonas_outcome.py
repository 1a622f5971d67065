"""The table of the demo of elastic widths, from documents as the stages write them."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from shearling.artefact import write_artefact
from shearling.demo.lonas.layout import LonasLayout
from shearling.demo.lonas.outcome import read_outcome
from shearling.demo.lonas.report import render_report
from shearling.demo.lonas.screen import closing_screen
from shearling.errors import DocumentInvalid
from shearling.evaluation.scoreboard import Score, Scoreboard
from shearling.strict_json import write_json

MS = (4.0, 2.5, 2.0)


def _spread(median: float) -> dict[str, float]:
    return {"median": median, "low": median * 0.8, "high": median * 1.25, "samples": 6}


def _write_times(layout: LonasLayout) -> None:
    exports = [str(path) for path in layout.exports.values()]
    times = [
        {"directory": export, "ms": ms, "speedup": MS[0] / ms, "low": 0.8 * MS[0] / ms, "high": 1.25 * MS[0] / ms}
        for export, ms in zip(exports, MS, strict=True)
    ]
    write_json(layout.forward, {"status": "ok", "tokens": 64, "times": times})
    subjects = [
        {
            "deployment": {"label": export, "weights_bytes": 1},
            "facts": {"runtime": "OpenVINO GenAI 2026.4.1", "settings": {}},
            "metrics": {"tpot_s": _spread(ms / 1e3)},
            "ratios": {"tpot_s": _spread(ms / MS[0])} if index else {},
        }
        for index, (export, ms) in enumerate(zip(exports, MS, strict=True))
    ]
    with write_artefact(layout.benchmark, kind="benchmark") as draft:
        document = {
            "schema": "shearling.benchmark/1",
            "workload": {"prompt_tokens": 32, "new_tokens": 64, "repeats": 6},
            "environment": {"cpu": "A processor", "usable_cpus": 2},
            "subjects": subjects,
        }
        write_json(draft.directory / "benchmark.json", document)


@pytest.fixture
def layout(tmp_path) -> LonasLayout:
    layout = LonasLayout(tmp_path)
    scores = []
    for index, path in enumerate(layout.exports.values()):
        path.mkdir(parents=True)
        facts = {"parameters": 20_000_000 - index * 10**6, "macs_m": 3000.0 - 600 * index}
        write_json(path / "report.json", {"schema": "shearling.export_report/2", "source": "a", **facts})
        scores.append(
            Score(
                directory=str(path),
                task="sarcasm_test",
                n=1000,
                rows_sha256="0" * 64,
                accuracy=0.9,
                interval=(0.88, 0.92),
                loss=0.3,
                bits_per_byte=None,
                sparsity=0.0,
                seconds=1.0,
            )
        )
    board = Scoreboard(split="test", precision="fp32", scores=tuple(scores))
    write_json(layout.evaluation, {"status": "ok", **board.model_dump(mode="json")})
    _write_times(layout)
    return layout


@pytest.mark.parametrize(
    ("kind", "timed"), [("encoder", "a forward of 64 tokens"), ("decoder", "a token, of 64 after a prompt of 32")]
)
def test_both_kinds_of_model_make_the_same_table(layout, kind, timed):
    outcome = read_outcome(layout, kind, seed=3, seconds={"Train": 60.0})
    assert (outcome.n, outcome.timed) == (1000, timed)
    reference, middle, found = outcome.models
    assert middle.ms == pytest.approx(2.5)
    assert found.speedup == pytest.approx((2.0, 1.6, 2.5))
    assert reference.speedup[0] == 1.0
    assert [model.macs_m for model in outcome.models] == [3000.0, 2400.0, 1800.0]
    report = render_report(outcome)
    assert "| LoNAS, searched | 90.0 (88.0-92.0) | 18.00 | 1.800 (-40%) | 2.00 | 2.00 (1.60-2.50) |" in report
    assert "Seed 3; 1000 unseen rows" in report
    stream = io.StringIO()
    Console(file=stream, width=140).print(closing_screen(outcome, layout))
    assert "LoNAS, searched" in stream.getvalue()
    assert "1.0 minutes" in stream.getvalue()


def test_a_document_that_lacks_what_the_table_needs_is_named(layout):
    report = layout.lora.export / "report.json"
    write_json(report, {"schema": "shearling.export_report/2", "parameters": 3})
    with pytest.raises(DocumentInvalid, match="macs_m") as caught:
        read_outcome(layout, "encoder", seed=0, seconds={})
    assert caught.value.where == str(report)
