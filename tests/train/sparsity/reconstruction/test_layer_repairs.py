"""Reconstruction as a part of pruning: layers come nearer to the dense ones, zeros stay, reports tell."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from shearling.elastic.mask import MASK_FILE, check_masked_zeros, load_masks
from shearling.errors import ModelUnsupported, RecipeInvalid
from shearling.model.checkpoint import load_model
from shearling.recipe.sparsity import ReconstructionSection
from shearling.run import Run
from shearling.strict_json import read_document
from tests.support.tiny_models import FAMILIES, VOCABULARY, bert
from tests.support.tiny_runs import tiny_recipe
from train.sparsity.artefact import SPARSITY_FILE, SparsityReport
from train.sparsity.pattern import Pattern, SemiStructured, Unstructured
from train.sparsity.sparsify import Sparsified, sparsify
from train.stage import run_recipe

METHODS = ["wanda", "sparsegpt", "alps", "magnitude"]


def text(count: int = 24) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(3, VOCABULARY, (24,), generator=generator) for _ in range(count)]


def repaired(
    method: str, reconstruction: ReconstructionSection | None, *, pattern: Pattern, family: str = "llama"
) -> tuple[nn.Module, Sparsified]:
    model = FAMILIES[family]()
    return model, sparsify(model, text(), method=method, pattern=pattern, reconstruction=reconstruction, batch_size=4)


def distance(model: nn.Module, dense: nn.Module) -> float:
    """Squared distance of the last hidden states on the calibration text."""
    with torch.no_grad():
        found, wanted = (
            m(input_ids=torch.stack(text()), output_hidden_states=True).hidden_states[-2] for m in (model, dense)
        )
    return (found - wanted).square().mean().item()


@pytest.mark.parametrize("pattern", [Unstructured(0.5), SemiStructured(2, 4)], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_each_repair_brings_the_model_nearer_to_the_dense_one(method: str, pattern: Pattern) -> None:
    dense = FAMILIES["llama"]()
    repairs = {
        "none": None,
        "matrices": ReconstructionSection(matrix_steps=15),
        "swapped": ReconstructionSection(swaps=10, matrix_steps=15),
        "layers": ReconstructionSection(matrix_steps=15, layer_epochs=8, learning_rate=0.01),
    }
    distances = {}
    for name, section in repairs.items():
        model, sparsified = repaired(method, section, pattern=pattern)
        check_masked_zeros(model, sparsified.masks)
        for mask in sparsified.masks.values():
            assert pattern.keep(mask.float()).equal(mask)
        assert len(sparsified.errors) == (0 if name != "layers" else len(dense.model.layers))
        assert all(error.tuned < error.pruned for error in sparsified.errors)
        distances[name] = distance(model, dense)
    if method in ("wanda", "magnitude"):
        assert distances["matrices"] < 0.8 * distances["none"]
        assert distances["swapped"] < distances["matrices"]
    assert distances["layers"] < distances["matrices"]


def test_it_is_deterministic_and_touches_only_what_is_pruned() -> None:
    section = ReconstructionSection(swaps=3, layer_epochs=2)
    (first, _), (second, _) = (repaired("wanda", section, pattern=Unstructured(0.5)) for _ in range(2))
    untouched = dict(FAMILIES["llama"]().named_parameters())
    for (name, parameter), again in zip(first.named_parameters(), second.parameters(), strict=True):
        assert parameter.equal(again)
        if "_proj" not in name:
            assert parameter.equal(untouched[name])
        assert parameter.grad is None


def test_a_classifier_is_repaired_as_well() -> None:
    model = bert()
    section = ReconstructionSection(layer_epochs=4, learning_rate=0.01)
    sparsified = sparsify(model, text(), method="alps", pattern=Unstructured(0.5), reconstruction=section)
    assert all(error.tuned < error.pruned for error in sparsified.errors)


def test_a_recipe_asks_for_it_and_the_report_tells_what_it_brought(tmp_path: Path) -> None:
    section = {"swaps": 2, "matrix_steps": 5, "layer_epochs": 2}
    recipe = tiny_recipe(tmp_path, sparsity={"method": "sparsegpt", "reconstruction": section}, train={"steps": 1})
    run_recipe(recipe, tmp_path / "run")
    run = Run(tmp_path / "run")
    report = read_document(run.sparse / SPARSITY_FILE, SparsityReport, schema="shearling.sparsity/1")
    assert report.errors is not None
    assert all(error.tuned < error.pruned for error in report.errors)
    check_masked_zeros(load_model(run.sparse), load_masks(run.sparse / MASK_FILE))


def test_without_text_it_is_refused() -> None:
    with pytest.raises(RecipeInvalid, match="needs calibration text"):
        sparsify(
            FAMILIES["llama"](),
            [],
            method="magnitude",
            pattern=Unstructured(0.5),
            reconstruction=ReconstructionSection(),
        )


def test_swaps_are_refused_where_a_pattern_does_not_say_what_competes() -> None:
    class Silent:
        name, ratio = "silent", 0.5

        def misfit(self, row: int) -> str | None:
            return None

        def keep(self, scores: Tensor) -> Tensor:
            return Unstructured(0.5).keep(scores)

    with pytest.raises(ModelUnsupported, match="does not say among which"):
        sparsify(
            FAMILIES["llama"](),
            text(2),
            method="wanda",
            pattern=Silent(),
            reconstruction=ReconstructionSection(swaps=1),
        )
