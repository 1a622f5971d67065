"""The steps of the demos are commands that exist, and each makes what a later one reads."""

from __future__ import annotations

import pytest

from shearling.demo.lonas.layout import LonasLayout
from shearling.demo.lonas.plan import plan_demo as plan_lonas
from shearling.demo.shears.layout import ShearsLayout
from shearling.demo.shears.plan import compared_exports, compared_models
from shearling.demo.shears.plan import plan_demo as plan_shears
from shearling.target import parse_target
from tests.support.command_parsing import parse_command


@pytest.mark.parametrize("scale", ["full", "smoke"])
@pytest.mark.parametrize("demo", ["shears", "encoder", "decoder"])
def test_every_step_is_a_command_that_exists(tmp_path, demo, scale):
    if demo == "shears":
        actions = plan_shears(ShearsLayout(tmp_path), scale)
    else:
        actions = plan_lonas(LonasLayout(tmp_path), demo, scale, seed=0)
    for action in actions:
        flag, program, *arguments = action.step.arguments
        assert flag == "-m"
        parse_command(f"{program}.__main__", program, arguments)


def test_the_plan_names_each_output_once_and_makes_inputs_before_they_are_read(tmp_path):
    layout = ShearsLayout(tmp_path)
    steps = [action.step for action in plan_shears(layout, "full")]
    outputs = [step.output for step in steps]
    assert len(set(outputs)) == len(outputs)
    # The training steps also make these on their way.
    made = {layout.run.task, layout.run.base, layout.run.adapted, layout.run.sparse}
    for step in steps:
        assert all(path in made or path.suffix == ".toml" for path in step.inputs), step.title
        made.add(step.output)
    assert set(compared_exports(layout).values()) <= made
    assert set(compared_models(layout).values()) <= made


def test_peers_are_evaluated_and_timed_and_whatever_else_is_done_stays(tmp_path):
    layout, peers = ShearsLayout(tmp_path), [parse_target(tmp_path / "a.gguf"), parse_target("b@format=onnx")]
    before, after = plan_shears(layout, "full"), plan_shears(layout, "full", peers)
    for old, new in zip(before, after, strict=True):
        compares = new.step.output in (layout.evaluation, layout.benchmark)
        assert (old.step == new.step) is not compares
        if compares:
            assert {peer.path for peer in peers} <= set(new.step.inputs)
            assert {peer.label for peer in peers} <= set(new.step.arguments)
            assert "--format" not in new.step.arguments, "a format that is asked for holds for peers, too"
            parse_command(f"{new.step.arguments[1]}.__main__", new.step.arguments[1], new.step.arguments[2:])


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_a_new_base_makes_a_new_super_network(tmp_path, kind):
    """The base and the task are shared with the baseline: when that is made anew, what was trained on the old ones is
    stale."""
    layout = LonasLayout(tmp_path)
    steps = {action.step.output: action.step for action in plan_lonas(layout, kind, "smoke", seed=0)}
    assert {layout.lonas.base, layout.lonas.task} <= set(steps[layout.lonas.super_adapter].inputs)
