"""Shares of zeros by layer: their mean is what was asked for, and outliers keep more."""

from __future__ import annotations

import random
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from shearling.errors import ModelUnsupported
from shearling.model.layers import find_layers
from shearling.recipe.sparsity import SparsitySection
from shearling.run import Run
from shearling.strict_json import read_document
from tests.support.tiny_models import FAMILIES, VOCABULARY, bert
from tests.support.tiny_runs import tiny_recipe
from train.sparsity.allocation import evolution
from train.sparsity.allocation.evolution import MOST_LEVELS, STEP, evolved_ratios, mutate
from train.sparsity.allocation.outliers import SPREAD, outlier_ratios, outlier_shares, spread_ratios
from train.sparsity.artefact import SPARSITY_FILE, SparsityReport
from train.stage import run_recipe

TEXT = [torch.randint(3, VOCABULARY, (24,), generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


def test_the_mean_is_the_ratio_and_the_order_that_of_the_outliers() -> None:
    ratios = spread_ratios([0.01, 0.04, 0.02, 0.03], 0.6)
    assert sum(ratios) / 4 == pytest.approx(0.6)
    assert sorted(range(4), key=lambda layer: ratios[layer]) == [1, 3, 2, 0]
    assert max(ratios) - min(ratios) == pytest.approx(2 * SPREAD)
    assert spread_ratios([0.02, 0.02], 0.6) == (0.6, 0.6)


def test_outliers_are_counted_as_the_formula_says() -> None:
    """Layer 1 gets a few weights a hundred times the others; the norms are those of the dense model's inputs."""
    model = FAMILIES["llama"]()
    transformer = find_layers(model)
    linears = transformer.linears_of(1)
    with torch.no_grad():
        for linear in linears.values():
            linear.weight[0, :3] *= 100
    squares = {path: torch.zeros(linear.in_features) for path, linear in linears.items()}

    def show(path: str):
        def add(_module: object, inputs: tuple[torch.Tensor, ...]) -> None:
            squares[path] += inputs[0].detach()[0].square().sum(0) / len(TEXT)

        return add

    hooks = [linear.register_forward_pre_hook(show(path)) for path, linear in linears.items()]
    shares = outlier_shares(model, TEXT)
    for hook in hooks:
        hook.remove()
    outliers = weights = 0
    for path, linear in linears.items():
        scores = linear.weight.detach().abs() * squares[path].sqrt()
        outliers += int((scores > 5 * scores.mean()).sum())
        weights += scores.numel()
    assert shares[1] == pytest.approx(outliers / weights)
    assert shares[1] > shares[0]
    ratios = outlier_ratios(model, TEXT, 0.6)
    assert ratios[1] < ratios[0]


def test_a_recipe_prunes_layers_by_their_outliers(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, sparsity={"ratio": 0.6, "allocation": "owl"}, train={"steps": 1})
    run_recipe(recipe, tmp_path / "run")
    report = read_document(Run(tmp_path / "run").sparse / SPARSITY_FILE, SparsityReport, schema="shearling.sparsity/1")
    assert report.achieved_scope == pytest.approx(0.6, abs=0.02)
    assert max(report.layers) - min(report.layers) == pytest.approx(2 * SPREAD, abs=0.04)


@pytest.mark.parametrize("ratio", [0.001, 0.04, 0.12, 0.5, 0.88, 0.96, 0.99, 0.995])
@pytest.mark.parametrize(
    "outliers",
    [(1, *(0,) * 29), (0, *(1,) * 29), (3, 1, 2), (0, 1), tuple(range(12))],
    ids=["one has", "one has none", "three", "two", "even"],
)
def test_near_either_end_shares_are_clipped_and_the_mean_stays(outliers: tuple[int, ...], ratio: float) -> None:
    ratios = spread_ratios(outliers, ratio)
    assert sum(ratios) / len(ratios) == pytest.approx(ratio, rel=1e-12)
    assert 0 <= min(ratios) <= max(ratios) < 1
    furthest = 2 * SPREAD * (1 - 1 / len(outliers))
    assert max(abs(share - ratio) for share in ratios) <= furthest + 1e-12
    scale = 2 * SPREAD / (max(outliers) - min(outliers))
    unclipped = [place for place, share in enumerate(ratios) if 1e-9 < share < 0.99 - 1e-9]
    inside = [ratios[place] + scale * outliers[place] for place in unclipped]
    assert not inside or max(inside) == pytest.approx(min(inside))


def test_a_ratio_at_the_end_prunes_every_layer_that_it_can() -> None:
    assert max(outlier_ratios(FAMILIES["llama"](), TEXT, 0.999)) == pytest.approx(0.999)
    assert min(outlier_ratios(FAMILIES["llama"](), TEXT, 0.001)) >= 0


def test_dropout_does_not_count_as_an_outlier_and_training_goes_on_after() -> None:
    model = bert().train()
    assert outlier_shares(model, TEXT) == outlier_shares(bert(), TEXT)
    assert model.training


def test_a_pattern_with_a_share_of_its_own_is_uniform() -> None:
    with pytest.raises(ValueError, match="allocation must be uniform"):
        SparsitySection(pattern="2:4", allocation="owl")


def test_a_mutation_moves_zeros_and_keeps_their_number() -> None:
    generator = random.Random(0)
    levels = (0, 0, 0, 0)
    seen = set()
    for _ in range(300):
        levels = mutate(levels, 0.9, generator)
        assert sum(levels) == 0
        assert all(abs(level) <= MOST_LEVELS and 0 <= 0.9 + STEP * level < 1 for level in levels)
        seen.add(levels)
    assert len(seen) > 50
    assert mutate((0,), 0.5, generator) == (0,)


def test_a_mutation_moves_one_to_three_levels_and_none_beyond_the_bounds() -> None:
    generator = random.Random(1)
    moves = {sum(map(abs, mutate((0,) * 9, 0.5, generator))) // 2 for _ in range(200)}
    assert {1, 2, 3} <= moves <= {0, 1, 2, 3}
    for _ in range(200):
        assert max(map(abs, mutate((MOST_LEVELS, -MOST_LEVELS, 0), 0.5, generator))) <= MOST_LEVELS


class Bowl:
    """Losses without a model: lowest where the levels are 3, -2, -1, and another order on part of the text."""

    looks: ClassVar[list[tuple[tuple[int, ...], int, float]]] = []
    steepness = 1.0

    def __init__(self, model: nn.Module, calibration: list[Tensor], ratio: float) -> None:
        self.transformer = find_layers(model)
        Bowl.looks = []

    def loss(self, levels: tuple[int, ...], text: list[Tensor]) -> float:
        distance = sum((level - best) ** 2 for level, best in zip(levels, (3, -2, -1), strict=True))
        loss = self.steepness * distance + (5 * levels[0] % 7 if len(text) < len(TEXT) else 0)
        self.looks.append((levels, len(text), loss))
        return loss

    def restore(self) -> None:
        pass


def test_the_best_of_a_first_look_takes_its_parents_place_if_it_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evolution, "_Candidates", Bowl)
    ratios = evolved_ratios(FAMILIES["llama"](), TEXT, 0.5, seed=0)
    best, _, least = Bowl.looks[0]
    assert best == (0, 0, 0)
    first_looks: list[tuple[tuple[int, ...], float]] = []
    for levels, samples, loss in Bowl.looks[1:]:
        if samples < len(TEXT):
            assert levels != best
            first_looks.append((levels, loss))
            continue
        assert loss == sum((level - wanted) ** 2 for level, wanted in zip(levels, (3, -2, -1), strict=True))
        assert min(look for _, look in first_looks) == dict(first_looks)[levels]
        if loss < least:
            best, least = levels, loss
        first_looks = []
    assert not first_looks
    assert least < 5
    assert ratios == tuple(0.5 + STEP * level for level in best)


def test_without_anything_to_gain_the_shares_stay_uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evolution, "_Candidates", Bowl)
    monkeypatch.setattr(Bowl, "steepness", 0.0)
    assert evolved_ratios(FAMILIES["llama"](), TEXT, 0.5, seed=0) == (0.5, 0.5, 0.5)


def test_the_seed_decides_which_shares_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evolution, "_Candidates", Bowl)
    looks = []
    for seed in (0, 0, 1):
        evolved_ratios(FAMILIES["llama"](), TEXT, 0.5, seed=seed)
        looks.append(Bowl.looks)
    assert looks[0] == looks[1] != looks[2]


def test_a_candidates_loss_is_that_of_a_token_whatever_was_tried_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evolution, "resolve_precision", lambda _requested, device: "fp32")
    model, text = FAMILIES["llama"](), [TEXT[0][:9], TEXT[1]]
    total = 0.0
    with torch.no_grad():
        for sample in text:
            logits = model(input_ids=sample[None]).logits[0].double().log_softmax(-1)
            total -= sum(float(logits[place, sample[place + 1]]) for place in range(len(sample) - 1))
    assert evolution._Candidates(model, text, 0.0).loss((0, 0, 0), text) == pytest.approx(total / (8 + 23), rel=1e-5)
    candidates = evolution._Candidates(model, text, 0.5)
    first = candidates.loss((0, 0, 0), text)
    assert candidates.loss((4, -4, 0), text) != first
    assert candidates.loss((0, 0, 0), text) == first


def test_a_model_that_predicts_no_tokens_has_no_loss_to_search_by() -> None:
    with pytest.raises(ModelUnsupported, match="no loss"):
        evolved_ratios(bert(), TEXT, 0.5, seed=0)


def test_evolution_spares_the_layer_that_matters_and_leaves_the_model_dense() -> None:
    """Layers 1 and 2 hardly write to the hidden states, so that their weights are the ones to lose."""
    model = FAMILIES["llama"]()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
            if ".0." not in name and ("o_proj" in name or "down_proj" in name):
                parameter.mul_(1e-3)
        # What follows is what the dense model says itself, so that pruning raises the loss.
        text = [sample.clone() for sample in TEXT]
        for sample in text:
            for place in range(1, len(sample)):
                sample[place] = model(input_ids=sample[None, :place]).logits[0, -1].argmax()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    ratios = evolved_ratios(model, text, 0.6, seed=0, generations=20)
    assert sum(ratios) / len(ratios) == pytest.approx(0.6)
    assert ratios[0] < 0.6
    assert ratios == evolved_ratios(model, text, 0.6, seed=0, generations=20)
    for name, parameter in model.named_parameters():
        assert parameter.equal(before[name])


def test_a_recipe_searches_the_shares(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, sparsity={"ratio": 0.6, "allocation": "searched"}, train={"steps": 1})
    run_recipe(recipe, tmp_path / "run")
    report = read_document(Run(tmp_path / "run").sparse / SPARSITY_FILE, SparsityReport, schema="shearling.sparsity/1")
    assert report.achieved_scope == pytest.approx(0.6, abs=0.02)
