"""The demo of elastic widths at smoke scale, with the real models: every step, and a table that compares what was
exported."""

import json

import pytest

from shearling.demo.lonas.outcome import LonasOutcome
from shearling.demo.lonas.stage import run_demo
from shearling.strict_json import read_document


@pytest.mark.demo
@pytest.mark.pretrained
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_the_demo_of_elastic_widths(tmp_path, kind):
    run_demo(tmp_path / "demo", kind=kind, scale="smoke", seed=1, force=False)
    outcome = read_document(tmp_path / "demo" / "summary.json", LonasOutcome)
    lora, heuristic, searched = outcome.models
    assert searched.macs_m <= lora.macs_m
    assert heuristic.parameters < lora.parameters
    assert all(model.ms > 0 and model.speedup[1] <= model.speedup[0] <= model.speedup[2] for model in outcome.models)
    assert "LoNAS, searched" in (tmp_path / "demo" / "report.md").read_text()
    seconds = json.loads((tmp_path / "demo" / "summary.json").read_text())["seconds"]
    again = run_demo(tmp_path / "demo", kind=kind, scale="smoke", seed=1, force=False)
    assert again.data["seconds"] == seconds
