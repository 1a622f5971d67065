"""Patterns by name, and one from another package through the real command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from shearling.elastic.mask import MASK_FILE, load_masks
from shearling.errors import ModelUnsupported, RecipeInvalid
from shearling.registry.pruning_patterns import PRUNING_PATTERNS
from shearling.run import Run
from tests.support.stage_commands import run_stage
from tests.support.tiny_models import FAMILIES
from tests.support.tiny_runs import write_tiny_recipe
from tests.support.toy_package import toy_package
from train.sparsity.pattern import (
    PatternedMatrix,
    SemiStructured,
    Unstructured,
    check_patterns,
    competing_block,
    make_pattern,
)
from train.sparsity.sparsify import sparsify

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
    done = run_stage("train", "--recipe", recipe, "--output", run.path, "--json", code=0, environment=env)
    sparsity = json.loads(done.stdout)["artefacts"]["sparse"]["sparsity"]
    assert (sparsity["pattern"], sparsity["achieved_scope"]) == ("1:4", 0.25)
    for mask in load_masks(run.sparse / MASK_FILE).values():
        assert ((~mask).view(-1, 4).sum(dim=1) == 1).all()


@pytest.mark.parametrize(("name", "zeros", "block"), [("2:4", 2, 4), ("4:8", 4, 8)])
def test_a_named_pattern_has_its_zeros_in_every_block(name: str, zeros: int, block: int) -> None:
    pattern = make_pattern(name, ratio=0.5)
    mask = pattern.keep(torch.rand(6, 48))
    assert ((~mask).view(-1, block).sum(dim=1) == zeros).all()
    assert (pattern.name, pattern.ratio) == (name, zeros / block)
    assert competing_block(pattern, where="") == block


def test_the_ratio_is_the_share_that_goes_not_the_share_that_stays() -> None:
    pattern = SemiStructured(1, 4)
    assert (pattern.name, pattern.ratio) == ("1:4", 0.25)
    assert (~pattern.keep(torch.rand(5, 8))).float().mean() == pattern.ratio


def test_a_share_of_a_single_weight_takes_the_lowest_of_each_row() -> None:
    scores = torch.rand(7, 12)
    assert (~Unstructured(0.1).keep(scores)).nonzero()[:, 1].equal(scores.argmin(dim=1))


def test_zeros_that_no_row_would_have_are_refused_and_those_that_some_would_not_have_are_named() -> None:
    def found(ratio: float) -> list[str]:
        pattern = Unstructured(ratio)
        return [
            item.path for item in check_patterns([PatternedMatrix(f"w{row}", row, pattern) for row in (48, 88, 96)])
        ]

    assert found(0.5) == found(1 / 48) == []
    assert found(0.0) == [], "none were asked for"
    assert found(0.0208) == ["w48"]
    assert found(1 / 96) == ["w48", "w88"]
    with pytest.raises(RecipeInvalid, match=r"no layer can take 0\.0104: of rows of 48 and 88 and 96 weights") as error:
        found(0.0104)
    assert error.value.exit_code == 2
    with pytest.raises(ModelUnsupported, match="rows of 9 weights are no multiple of 4") as unfit:
        check_patterns([PatternedMatrix("w", 9, SemiStructured(2, 4))])
    assert unfit.value.where == "w"


def test_a_ratio_that_no_layer_can_take_ends_before_the_model_is_imported(tmp_path: Path) -> None:
    """Rows have 60 and 100 weights."""
    recipe, run = write_tiny_recipe(tmp_path, sparsity={"ratio": 0.0099}), tmp_path / "run"
    done = run_stage("train", "--recipe", recipe, "--output", run, code=2)
    assert "no layer can take 0.0099: of rows of 60 and 100 weights" in " ".join(done.stderr.split())
    assert not run.exists()


def test_matrices_that_keep_all_their_weights_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Of rows of 48 nothing goes, of those of 88 one weight."""
    model = FAMILIES["llama"]()
    masks = sparsify(model, [], method="magnitude", pattern=Unstructured(0.02)).masks
    said = " ".join(capsys.readouterr().err.split())
    assert "18 matrices keep all their weights, the first is model.layers.0.self_attn.q_proj" in said
    for path, mask in masks.items():
        assert ((~mask).sum(dim=1) == path.endswith("down_proj")).all()
