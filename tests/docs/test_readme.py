"""The README's commands, carried out in its order, with a tiny model in the place of the demo's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.documents import ROOT
from tests.support.tiny_runs import write_tiny_recipe

VERDICT = 1
"""Of `serve check`: a model of microseconds against itself may stay inconclusive on a busy machine."""

BUDGET_S = 8
"""Of that check, whose verdict is not what the test is about."""


def readme_commands() -> list[str]:
    """Every command of the pipeline; the demo itself is carried out by `make smoke`."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"^ {4}((?:python -m|shearling) .+)$", text, flags=re.MULTILINE)
    return [command.partition("  #")[0].strip() for command in shown]


def test_every_stage_is_shown():
    words = {word for command in readme_commands() for word in command.split()[:3]}
    assert {"train", "search", "export", "serve", "shearling"} <= words


@pytest.mark.slow
def test_the_commands_of_the_readme_work_in_its_order(tmp_path):
    recipe = write_tiny_recipe(tmp_path / "recipe")
    (tmp_path / "recipes").mkdir()
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    scripts = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": paths, "PATH": scripts}
    for command in readme_commands():
        mine = command.replace("recipes/smollm2-shears.toml", str(recipe)).replace("runs/old/", "runs/mine/")
        if " check " in command:
            mine += f" --budget {BUDGET_S}"
        done = subprocess.run(
            ["bash", "-euc", mine], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        allowed = (0, VERDICT) if " check " in command else (0,)
        assert done.returncode in allowed, f"{command}\n{done.stdout}\n{done.stderr[-3000:]}"
    assert (tmp_path / "runs/mine/export-sparse").is_dir()
