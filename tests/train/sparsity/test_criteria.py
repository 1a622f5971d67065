"""Criteria from outside: one that needs no text, one that gathers X^T X and repairs what it keeps, and broken ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from shearling.elastic.mask import MASK_FILE, load_masks
from shearling.errors import NonFiniteWeights, ShapeMismatch, ShearlingError, UsageError
from shearling.model.checkpoint import load_model
from shearling.model.layers import find_layers
from shearling.recipe.sparsity import ReconstructionSection
from shearling.registry.pruning_methods import PRUNING_METHODS, PruningMethod
from shearling.run import Run
from tests.support.stage_commands import run_stage
from tests.support.tiny_models import FAMILIES, VOCABULARY
from tests.support.tiny_runs import write_tiny_recipe
from tests.support.toy_package import toy_package
from train.sparsity.criteria.criterion import Pruned
from train.sparsity.pattern import Pattern, SemiStructured, Unstructured, keep_mask
from train.sparsity.sparsify import sparsify

TOY = '''
import torch

from shearling.registry.pruning_methods import PruningMethod
from train.sparsity.criteria.criterion import Pruned
from train.sparsity.pattern import keep_mask


class LeftToRight:
    """The first columns go, whatever stands in them; what is kept is doubled."""

    def add(self, inputs):
        """Not called: the method needs no calibration."""

    def prune(self, weight, pattern, *, where):
        columns = torch.arange(weight.shape[1], dtype=torch.float32).expand(weight.shape)
        return Pruned(keep_mask(columns, pattern, where=where), 2 * weight)


ENTRY = PruningMethod(
    name="left_to_right", summary="the first columns go", implementation=LeftToRight, needs_calibration=False
)
'''


def train(recipe: Path, output: Path, env: dict[str, str], *, code: int = 0) -> dict[str, object]:
    done = run_stage("train", "--recipe", recipe, "--output", output, "--json", code=code, environment=env)
    return json.loads(done.stdout)


def test_a_criterion_from_another_package_prunes_through_the_command(tmp_path: Path) -> None:
    group = PRUNING_METHODS.group
    env = toy_package(tmp_path / "toy", group=group, name="left_to_right", code=TOY)
    recipe = write_tiny_recipe(tmp_path, sparsity={"method": "left_to_right"}, train={"steps": 2})
    made = train(recipe, tmp_path / "run", env)
    sparsity = made["artefacts"]["sparse"]["sparsity"]
    assert (sparsity["method"], sparsity["achieved_scope"]) == ("left_to_right", 0.5)
    run = Run(tmp_path / "run")
    before, after = (find_layers(load_model(path)).linears() for path in (run.base, run.sparse))
    for path, mask in load_masks(run.sparse / MASK_FILE).items():
        half = mask.shape[1] // 2
        assert not mask[:, :half].any()
        assert mask[:, half:].all()
        assert torch.equal(after[path].weight[mask], 2 * before[path].weight[mask])
    # Where the package is not installed, the recipe is refused with what there is.
    refused = train(recipe, tmp_path / "other", {**env, "PYTHONPATH": str(Path.cwd())}, code=2)
    assert "There are: wanda, sparsegpt, alps, magnitude" in refused["message"]


def add_method(monkeypatch: pytest.MonkeyPatch, implementation: object, *, needs_calibration: bool = True) -> None:
    PRUNING_METHODS.names()
    entry = PruningMethod(
        name="toy", summary="a toy", implementation=implementation, needs_calibration=needs_calibration
    )
    monkeypatch.setitem(PRUNING_METHODS._entries, "toy", entry)


class LeastSquares:
    """Magnitude, then the kept weights of each row that reproduce its outputs best: what X^T X is enough for."""

    def __init__(self) -> None:
        self.gram = torch.zeros(())

    def add(self, inputs: Tensor) -> None:
        rows = inputs.reshape(-1, inputs.shape[-1])
        self.gram = self.gram + rows.T @ rows

    def prune(self, weight: Tensor, pattern: Pattern, *, where: str) -> Pruned:
        mask, repaired = keep_mask(weight.float().abs(), pattern, where=where), torch.zeros_like(weight)
        gram = self.gram + 1e-6 * self.gram.diagonal().mean() * torch.eye(weight.shape[1])
        for row, kept in enumerate(mask):
            repaired[row, kept] = torch.linalg.solve(gram[kept][:, kept], gram[kept] @ weight[row])
        return Pruned(mask, repaired)


@pytest.mark.parametrize("pattern", [Unstructured(0.5), SemiStructured(2, 4)], ids=["unstructured", "2:4"])
def test_a_criterion_may_gather_a_gram_matrix_and_change_what_it_keeps(
    pattern: Pattern, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_method(monkeypatch, LeastSquares)
    text = [torch.randint(3, VOCABULARY, (24,), generator=torch.Generator().manual_seed(seed)) for seed in range(6)]
    dense = FAMILIES["mistral"]()
    errors = []
    for method in ("toy", "magnitude"):
        model = FAMILIES["mistral"]()
        masks = sparsify(model, text, method=method, pattern=pattern).masks
        linear, original = (find_layers(m).linears()["model.layers.0.self_attn.q_proj"] for m in (model, dense))
        mask = masks["model.layers.0.self_attn.q_proj"]
        assert not linear.weight[~mask].any()
        assert torch.equal(linear.weight[mask], original.weight[mask]) == (method == "magnitude")
        layer = find_layers(dense).layers[0]
        inputs = layer.input_layernorm(dense.get_input_embeddings()(torch.stack(text)))
        errors.append((inputs @ (linear.weight - original.weight).T).square().sum().item())
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (lambda weight: Pruned(torch.ones(1, dtype=torch.bool)), ShapeMismatch, "returned a mask"),
        (lambda weight: Pruned(torch.ones_like(weight)), ShapeMismatch, "expected .* of bool"),
        (lambda weight: Pruned(weight != 0, weight[:1]), ShapeMismatch, "returned weights"),
        (lambda weight: Pruned(weight != 0, weight / 0), NonFiniteWeights, "NaN or infinity"),
    ],
)
def test_what_does_not_fit_is_refused_by_module(
    result: object, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def prune(self, weight: Tensor, pattern: Pattern, *, where: str) -> Pruned:
            return result(weight)

    add_method(monkeypatch, Broken, needs_calibration=False)
    with pytest.raises(error, match=message) as caught:
        sparsify(FAMILIES["llama"](), [], method="toy", pattern=Unstructured(0.5))
    assert caught.value.where == "model.layers.0.self_attn.q_proj"


def test_a_refit_starts_where_the_method_left_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is at its best already is hardly moved by a step, however far it is from the dense weights."""
    add_method(monkeypatch, LeastSquares)
    text = [torch.randint(3, VOCABULARY, (24,), generator=torch.Generator().manual_seed(seed)) for seed in range(6)]
    path, weights = "model.layers.0.self_attn.q_proj", []
    for section in (None, ReconstructionSection(matrix_steps=1)):
        model = FAMILIES["mistral"]()
        sparsify(model, text, method="toy", pattern=Unstructured(0.5), reconstruction=section)
        weights.append(model.get_submodule(path).weight.detach())
    dense = FAMILIES["mistral"]().get_submodule(path).weight.detach()
    moved = (weights[1] - weights[0]).norm() / (weights[0] - dense * (weights[0] != 0)).norm()
    assert 0 < moved < 0.2


def test_what_a_criterion_leaves_in_the_place_of_zeros_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    class Divided:
        def prune(self, weight: Tensor, pattern: Pattern, *, where: str) -> Pruned:
            mask = keep_mask(weight.abs(), pattern, where=where)
            return Pruned(mask, weight / mask)

    add_method(monkeypatch, Divided, needs_calibration=False)
    model, dense = FAMILIES["llama"](), FAMILIES["llama"]()
    masks = sparsify(model, [], method="toy", pattern=Unstructured(0.5)).masks
    for path, mask in masks.items():
        assert model.get_submodule(path).weight.equal(dense.get_submodule(path).weight * mask)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("pattern", [Unstructured(0.5), SemiStructured(2, 4)], ids=["unstructured", "2:4"])
def test_scores_that_cannot_be_ranked_are_refused_by_module(
    value: float, pattern: Pattern, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Divided:
        def prune(self, weight: Tensor, pattern: Pattern, *, where: str) -> Pruned:
            scores = weight.clone()
            scores[1, 2] = value
            return Pruned(keep_mask(scores, pattern, where=where))

    add_method(monkeypatch, Divided, needs_calibration=False)
    with pytest.raises(NonFiniteWeights, match="scores of its weights hold NaN or infinity") as caught:
        sparsify(FAMILIES["llama"](), [], method="toy", pattern=pattern)
    assert caught.value.where == "model.layers.0.self_attn.q_proj"


def keep_columns(weight: Tensor, kept: list[bool]) -> Tensor:
    """The same columns of every four."""
    return torch.tensor(kept).repeat(weight.shape[1] // 4).expand(weight.shape)


def keep_other_rows(weight: Tensor) -> Tensor:
    """Whole rows: half of the weights, and not half of any row."""
    return (torch.arange(weight.shape[0]) % 2 == 0)[:, None].expand(weight.shape)


@pytest.mark.parametrize(
    ("mask", "pattern", "message"),
    [
        (lambda weight: torch.ones_like(weight, dtype=torch.bool), Unstructured(0.5), "0.00% zeros .* 50.00%"),
        (lambda weight: torch.zeros_like(weight, dtype=torch.bool), Unstructured(0.5), "100.00% zeros .* 50.00%"),
        (lambda weight: keep_columns(weight, [True, False, False, False]), Unstructured(0.5), "75.00% zeros"),
        (lambda weight: keep_columns(weight, [True, True, True, False]), SemiStructured(2, 4), "25.00% zeros .* 2:4"),
        (keep_other_rows, Unstructured(0.5), "does not keep to the pattern unstructured"),
        (
            lambda weight: keep_mask(torch.arange(weight.shape[1]).expand(weight.shape), Unstructured(0.5), where=""),
            SemiStructured(2, 4),
            "does not keep to the pattern 2:4",
        ),
    ],
    ids=["none", "all", "too many", "too few of 4", "whole rows", "half, but not 2:4"],
)
def test_a_mask_that_is_not_the_pattern_is_refused_by_module(
    mask: Callable[[Tensor], Tensor], pattern: Pattern, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stray:
        def prune(self, weight: Tensor, pattern: Pattern, *, where: str) -> Pruned:
            return Pruned(mask(weight))

    add_method(monkeypatch, Stray, needs_calibration=False)
    with pytest.raises(ShearlingError, match=message) as caught:
        sparsify(FAMILIES["llama"](), [], method="toy", pattern=pattern)
    assert (type(caught.value), caught.value.exit_code) == (ShearlingError, 5)
    assert caught.value.where == "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    "pattern", [Unstructured(0.0), Unstructured(0.37), Unstructured(1.0), SemiStructured(2, 4), SemiStructured(4, 8)]
)
def test_the_mask_of_a_mask_is_the_mask(pattern: Pattern) -> None:
    scores = torch.randint(0, 5, (30, 56), generator=torch.Generator().manual_seed(0)).float()
    mask = keep_mask(scores, pattern, where="")
    assert torch.equal(pattern.keep(mask.float()), mask)


def test_an_unknown_method_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean 'wanda'"):
        sparsify(FAMILIES["llama"](), [], method="wanda2", pattern=Unstructured(0.5))
