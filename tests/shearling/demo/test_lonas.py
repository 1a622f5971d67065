"""The demo of elastic widths at smoke scale, with the real models: every step, and a table that compares what was
exported."""

import json

import pytest

from shearling.demo.lonas import Comparison, Layout, plan_comparison, run_demo
from shearling.strict_json import read_document


@pytest.mark.demo
@pytest.mark.pretrained
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_the_demo_of_elastic_widths(tmp_path, kind):
    run_demo(tmp_path / "demo", kind=kind, scale="smoke", seed=1, force=False)
    comparison = read_document(tmp_path / "demo" / "summary.json", Comparison)
    lora, heuristic, searched = comparison.models
    assert searched.macs_m <= lora.macs_m
    assert heuristic.parameters < lora.parameters
    assert all(model.ms > 0 and model.speedup[1] <= model.speedup[0] <= model.speedup[2] for model in comparison.models)
    assert "LoNAS, searched" in (tmp_path / "demo" / "report.md").read_text()
    seconds = json.loads((tmp_path / "demo" / "summary.json").read_text())["seconds"]
    again = run_demo(tmp_path / "demo", kind=kind, scale="smoke", seed=1, force=False)
    assert again.data["seconds"] == seconds


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_a_new_base_makes_a_new_super_network(tmp_path, kind):
    """The base and the task are shared with the baseline: when that is made anew, what was trained on the old ones is
    stale."""
    layout = Layout(tmp_path)
    steps = {action.step.output: action.step for action in plan_comparison(layout, kind, "smoke", 0)}
    assert {layout.lonas.base, layout.lonas.task} <= set(steps[layout.lonas.super_adapter].inputs)
