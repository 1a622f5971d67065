"""A pruning pattern from another package, through the real command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from shearling.elastic.mask import MASK_FILE, load_masks
from shearling.registry.pruning_patterns import PRUNING_PATTERNS
from shearling.run import Run
from tests.support.tiny_runs import write_tiny_recipe
from tests.support.toy_package import toy_package

TOY = """
from shearling.registry.pruning_patterns import PruningPattern
from train.sparsity.pattern import SemiStructured

ENTRY = PruningPattern(
    name="1:4",
    summary="1 of every 4 consecutive weights of a row",
    implementation=lambda ratio: SemiStructured(1, 4),
    ratio=0.25,
)
"""


def test_a_pattern_from_another_package_prunes_through_the_command(tmp_path: Path) -> None:
    env = toy_package(tmp_path / "toy", group=PRUNING_PATTERNS.group, name="quarter", code=TOY)
    pruning = {"method": "magnitude", "pattern": "1:4", "ratio": 0.25}
    recipe, run = write_tiny_recipe(tmp_path, sparsity=pruning, train={"steps": 1}), Run(tmp_path / "run")
    command = [sys.executable, "-m", "train", "--recipe", str(recipe), "--output", str(run.path), "--json"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    sparsity = json.loads(done.stdout)["artefacts"]["sparse"]["sparsity"]
    assert (sparsity["pattern"], sparsity["achieved_scope"]) == ("1:4", 0.25)
    for mask in load_masks(run.sparse / MASK_FILE).values():
        assert ((~mask).view(-1, 4).sum(dim=1) == 1).all()
