"""Variants of a pruned model: nested, streamed, and made of nothing that training has not seen."""

from __future__ import annotations

import re
from pathlib import Path

import pydantic
import pytest
import torch

from shearling.artefact import open_artefact
from shearling.elastic.mask import MASK_FILE, load_masks
from shearling.elastic.variants import open_variants, variant_directory
from shearling.errors import ArtefactMismatch, OutputExists, RecipeInvalid, UsageError
from shearling.model.checkpoint import load_model
from shearling.model.layers import find_layers
from shearling.model.weight_shards import StoredWeights
from shearling.recipe.recipe import Recipe
from shearling.recipe.variants import VariantsSection
from shearling.run import Run
from tests.support.tiny_runs import tiny_recipe
from train.sparsity import variants as module
from train.sparsity.criteria import sparsegpt
from train.sparsity.variants import write_variants
from train.stage import make_variants, run_recipe

RATIOS = [0.6, 0.75]


def pruned(directory: Path, **options: object) -> tuple[Run, Recipe]:
    """A run that ends with the pruned model and its variants."""
    whole = tiny_recipe(directory, variants=RATIOS, **options)
    run_recipe(whole.model_copy(update={"adapter": None, "train": None, "variants": None}), directory / "run")
    return Run(directory / "run"), whole


@pytest.mark.parametrize(
    "sparsity",
    [
        {"method": "magnitude"},
        {"method": "wanda", "reconstruction": {"matrix_steps": 3}},
        {"method": "wanda", "allocation": "owl", "ratio": 0.58},
        {"method": "wanda", "allocation": "owl", "ratio": 0.58, "reconstruction": {"layer_epochs": 1}},
        {"method": "sparsegpt"},
    ],
    ids=["magnitude", "refitted", "owl", "owl tuned", "sparsegpt"],
)
def test_masks_are_nested_and_hold_what_was_asked_for(tmp_path, monkeypatch, sparsity):
    # Several blocks of columns in rows of 48 and 88.
    monkeypatch.setattr(sparsegpt, "BLOCK_COLUMNS", 16)
    run, recipe = pruned(tmp_path, sparsity=sparsity)
    variants = make_variants(recipe, run.path)["variants"]
    _, document = open_variants(variants.path, sparse=open_artefact(run.sparse, kind="sparse"))
    transformer = find_layers(load_model(run.sparse))
    before, stored, shares = load_masks(run.sparse / MASK_FILE), StoredWeights(run.sparse), document.trained
    for variant in document.variants:
        directory = variant_directory(variants.path, variant.percent)
        masks, weights = load_masks(directory / MASK_FILE), StoredWeights(directory)
        assert weights.tensors.keys() == {f"{path}.weight" for path in before}
        for path, mask in masks.items():
            weight = weights.read(f"{path}.weight")
            assert not (mask & ~before[path]).any(), "a weight is kept that was pruned before"
            assert not weight[~mask].any()
        for layer, share in enumerate(shares):
            for path in transformer.linears_of(layer):
                if variant.percent > round(100 * share):
                    assert (~masks[path]).sum(dim=1).eq(int(masks[path].shape[1] * variant.percent / 100)).all()
                else:
                    assert masks[path].equal(before[path])
                    assert weights.read(f"{path}.weight").equal(stored.read(f"{path}.weight"))
        assert sum(int((~mask).sum()) for mask in masks.values()) == variant.zeros
        before, stored, shares = masks, weights, variant.layers


def test_without_repair_what_a_variant_keeps_is_as_it_was_trained(tmp_path):
    run, recipe = pruned(tmp_path)
    variants = make_variants(recipe, run.path)["variants"]
    trained, most = StoredWeights(run.sparse), StoredWeights(variant_directory(variants.path, 75))
    masks = load_masks(variant_directory(variants.path, 75) / MASK_FILE)
    for path, mask in masks.items():
        weight = trained.read(f"{path}.weight")
        assert most.read(f"{path}.weight").equal(torch.where(mask, weight, torch.zeros_like(weight)))


def test_layer_by_layer_and_as_a_whole_are_the_same(tmp_path, monkeypatch):
    run, recipe = pruned(tmp_path, sparsity={"method": "wanda"})
    streamed = make_variants(recipe, run.path)["variants"]
    files = {name: entry.sha256 for name, entry in streamed.manifest.files.items()}
    monkeypatch.setattr(module, "open_skeleton", lambda _directory: None)
    whole = make_variants(recipe, run.path, force=True)["variants"]
    assert {name: entry.sha256 for name, entry in whole.manifest.files.items()} == files


def test_variants_are_reused_and_others_need_force(tmp_path):
    run, recipe = pruned(tmp_path)
    made = make_variants(recipe, run.path)["variants"]
    assert make_variants(recipe, run.path)["variants"].sha256 == made.sha256
    other = recipe.model_copy(update={"variants": VariantsSection(ratios=(0.9,))})
    with pytest.raises(OutputExists, match="another ratios"):
        make_variants(other, run.path)
    assert make_variants(other, run.path, force=True)["variants"].manifest.details["ratios"] == [0.9]


def test_variants_of_another_model_are_refused(tmp_path):
    run, recipe = pruned(tmp_path)
    variants = make_variants(recipe, run.path)["variants"]
    other, _ = pruned(tmp_path / "other", seed=4, sparsity={"ratio": 0.4})
    with pytest.raises(ArtefactMismatch, match="another pruned model"):
        open_variants(variants.path, sparse=open_artefact(other.sparse, kind="sparse"))
    with pytest.raises(OutputExists, match="another"):
        make_variants(recipe.model_copy(update={"seed": 9}), run.path)


def test_a_ratio_that_no_layer_can_take_is_refused(tmp_path):
    run, recipe = pruned(tmp_path)
    with pytest.raises(RecipeInvalid, match=r"no layer can take 0\.4: the fewest zeros"):
        write_variants(
            open_artefact(run.sparse, kind="sparse"),
            run.variants,
            section=VariantsSection(ratios=(0.4, 0.6)),
            sparsity=recipe.sparsity,
            calibration=[],
            seed=0,
        )
    assert not run.variants.exists()
    make_variants(recipe, run.path)
    _, document = open_variants(run.variants, sparse=open_artefact(run.sparse, kind="sparse"))
    with pytest.raises(UsageError, match=r"no layer was pruned to 0\.9") as refused:
        document.percents_of((60, 90))
    assert "0.5, 0.6, 0.75" in str(refused.value.remedy)
    assert document.percents_of((50, 75)) == ((50, 75), (50, 75))


def test_a_weight_that_is_back_is_refused(tmp_path, monkeypatch):
    run, recipe = pruned(tmp_path)
    path = "model.layers.1.mlp.up_proj"

    def with_one_more_pruned(file: Path) -> dict[str, torch.Tensor]:
        masks = dict(load_masks(file))
        largest = StoredWeights(run.sparse).read(f"{path}.weight").abs().argmax()
        masks[path].view(-1)[largest] = False
        return masks

    monkeypatch.setattr(module, "load_masks", with_one_more_pruned)
    with pytest.raises(RecipeInvalid, match=f"brings 1 pruned weights of {path} back, and an adapter"):
        make_variants(recipe, run.path)
    assert not run.variants.exists()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"variants": [0.5]}, "no layer can take 0.5"),
        ({"variants": [0.7, 0.6]}, "must ascend"),
        ({"variants": [0.655]}, "whole percent"),
        ({"variants": [0.6], "sparsity": {"pattern": "2:4"}}, "has other ratios"),
        ({"variants": [0.6], "quantization": {"bits": 4}}, "exclude each other"),
        ({"variants": [0.6], "sparse": False, "masked": False}, "needs [sparsity]"),
        ({"variants": [0.6], "sparsity": {"method": "alps"}}, "alps brings weights back"),
        ({"variants": [0.6], "sparsity": {"method": "wanda", "reconstruction": {"swaps": 2}}}, "set swaps = 0"),
    ],
)
def test_recipes_that_cannot_be_meant_are_refused(tmp_path, options, problem):
    with pytest.raises((RecipeInvalid, pydantic.ValidationError), match=re.escape(problem)):
        tiny_recipe(tmp_path, **options)
