"""The steps of the demos are commands that exist, and each makes what a later one reads."""

from __future__ import annotations

import pytest

from shearling.demo.lonas.layout import LonasLayout
from shearling.demo.lonas.plan import plan_demo as plan_lonas
from shearling.demo.shears.layout import ShearsLayout
from shearling.demo.shears.plan import compared_exports, compared_models
from shearling.demo.shears.plan import plan_demo as plan_shears
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


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_a_new_base_makes_a_new_super_network(tmp_path, kind):
    """The base and the task are shared with the baseline: when that is made anew, what was trained on the old ones is
    stale."""
    layout = LonasLayout(tmp_path)
    steps = {action.step.output: action.step for action in plan_lonas(layout, kind, "smoke", seed=0)}
    assert {layout.lonas.base, layout.lonas.task} <= set(steps[layout.lonas.super_adapter].inputs)
