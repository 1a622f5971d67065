"""Healing: the kept weights learn what the dense model predicts, and no zero moves."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_pre_hook

from shearling.elastic.mask import MASK_FILE, check_masked_zeros, load_masks
from shearling.errors import NonFiniteWeights, RecipeInvalid, TrainingDiverged
from shearling.model.checkpoint import load_model
from shearling.recipe.sparsity import HealingSection
from shearling.run import Run
from shearling.strict_json import read_document
from tests.support.tiny_models import FAMILIES, VOCABULARY, bert
from tests.support.tiny_runs import tiny_recipe
from train.sparsity import healing
from train.sparsity.artefact import SPARSITY_FILE, SparsityReport
from train.sparsity.healing import heal
from train.sparsity.pattern import Unstructured
from train.sparsity.sparsify import sparsify
from train.stage import run_recipe


def windows(count: int, *, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY, (20,), generator=generator) for _ in range(count)]


def divergence(model: nn.Module, dense: nn.Module, text: list[Tensor]) -> float:
    with torch.no_grad():
        found, wanted = (m(input_ids=torch.stack(text)).logits.log_softmax(-1) for m in (model, dense))
    return F.kl_div(found, wanted, log_target=True, reduction="none").sum(-1).mean().item()


def pruned(family: str) -> tuple[nn.Module, nn.Module, dict[str, Tensor]]:
    dense = FAMILIES[family]()
    with torch.no_grad():
        # Random weights predict next to nothing: larger ones have something to lose.
        for parameter in dense.parameters():
            parameter.mul_(3 if parameter.ndim == 2 else 1)
    model = copy.deepcopy(dense)
    return model, dense, dict(sparsify(model, [], method="magnitude", pattern=Unstructured(0.5)).masks)


@pytest.mark.parametrize("family", ["llama", "bloom", "gemma2"])
def test_the_text_is_predicted_as_by_the_dense_model_and_nothing_else_moves(family: str) -> None:
    model, dense, masks = pruned(family)
    others = {
        name: parameter.clone()
        for name, parameter in model.named_parameters()
        if name.removesuffix(".weight") not in masks
    }
    text = windows(8)
    before = divergence(model, dense, text)
    section = HealingSection(steps=60, batch_size=4, learning_rate=0.02)
    healed = heal(model, dense, masks, text * 30, section, classifier=False)
    check_masked_zeros(model, masks)
    assert divergence(model, dense, text) < 0.5 * before
    assert healed.after < 0.6 * healed.before
    assert all(parameter.equal(others[name]) for name, parameter in model.named_parameters() if name in others)
    assert not any(parameter.requires_grad and parameter.grad is not None for parameter in model.parameters())


@pytest.fixture
def _float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine multiplies fastest in."""
    monkeypatch.setattr(healing, "resolve_precision", lambda _requested, device: "fp32")


@pytest.mark.usefixtures("_float32")
@pytest.mark.parametrize("classifier", [False, True], ids=["decoder", "classifier"])
def test_what_is_reported_is_the_distance_over_the_first_and_the_last_tenth(classifier: bool) -> None:
    """A rate so small that nothing moves; 20 steps of two windows, so that the first four and the last four count."""
    if classifier:
        dense = bert()
        model = copy.deepcopy(dense)
        masks = sparsify(model, [], method="magnitude", pattern=Unstructured(0.5)).masks
    else:
        model, dense, masks = pruned("llama")
    text = windows(40)

    def distance(part: list[Tensor]) -> float:
        if not classifier:
            return divergence(model, dense, part)
        with torch.no_grad():
            found, wanted = (m(input_ids=torch.stack(part)).last_hidden_state for m in (model, dense))
        return float((found - wanted).square().sum() / wanted.square().sum())

    section = HealingSection(steps=20, batch_size=2, learning_rate=1e-12)
    healed = heal(model, dense, masks, text, section, classifier=classifier)
    for found, part in ((healed.before, text[:4]), (healed.after, text[-4:])):
        assert found == pytest.approx((distance(part[:2]) + distance(part[2:])) / 2, rel=1e-4)
    assert healed.before != healed.after


@pytest.mark.usefixtures("_float32")
def test_the_rate_is_a_share_of_what_is_kept_and_rises_for_a_tenth_and_falls_to_nothing() -> None:
    model, dense, masks = pruned("llama")
    path = "model.layers.1.mlp.up_proj"
    weight, rates = model.get_submodule(path).weight, []
    typical = float(weight.detach()[masks[path]].double().square().mean().sqrt())

    def record(optimizer: torch.optim.Optimizer, *_: object) -> None:
        rates.append(optimizer.param_groups[0]["lr"] / typical)

    hook = register_optimizer_step_pre_hook(record)
    section = HealingSection(steps=20, batch_size=1, learning_rate=0.02)
    heal(model, dense, {path: masks[path]}, windows(20), section, classifier=False)
    hook.remove()
    # Half the full rate, the full rate, and then down the slope of a cosine.
    slope = [0.02 * math.cos(math.pi * step / 40) ** 2 for step in range(20)]
    assert rates == pytest.approx([slope[0] / 2, *slope[1:]], rel=1e-4)
    assert rates[-1] < 0.01 * max(rates)


def test_a_healed_model_is_frozen_and_learns_nothing_more() -> None:
    model, dense, masks = pruned("llama")
    heal(model, dense, masks, windows(4), HealingSection(steps=2, batch_size=2), classifier=False)
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    model.requires_grad_(True)
    model(input_ids=torch.stack(windows(2))).logits.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert parameter.equal(before[name])


def test_a_matrix_of_which_nothing_is_kept_stays_zero() -> None:
    model, dense, masks = pruned("llama")
    path = "model.layers.0.mlp.up_proj"
    masks[path] = torch.zeros_like(masks[path])
    with torch.no_grad():
        model.get_submodule(path).weight.zero_()
    heal(model, dense, masks, windows(4), HealingSection(steps=2, batch_size=2), classifier=False)
    assert not model.get_submodule(path).weight.any()


def test_a_distance_that_is_no_number_is_named() -> None:
    model, dense, masks = pruned("llama")
    with torch.no_grad():
        dense.lm_head.weight[3] = torch.nan
    with pytest.raises(NonFiniteWeights, match="diverged at step 1: the distance is nan"):
        heal(model, dense, masks, windows(1), HealingSection(steps=1, batch_size=1), classifier=False)


def test_it_is_a_part_of_the_recipe(tmp_path: Path) -> None:
    healing = {"steps": 12, "batch_size": 2, "seq_len": 16, "learning_rate": 0.01}
    recipe = tiny_recipe(tmp_path, sparsity={"healing": healing}, train={"steps": 2})
    run_recipe(recipe, tmp_path / "run")
    run = Run(tmp_path / "run")
    report = read_document(run.sparse / SPARSITY_FILE, SparsityReport, schema="shearling.sparsity/1")
    assert report.healed is not None
    assert report.healed.steps == 12
    masks = load_masks(run.sparse / MASK_FILE)
    healed, base = load_model(run.sparse), load_model(run.base)
    check_masked_zeros(healed, masks)
    path = next(iter(masks))
    kept = masks[path]
    moved = healed.get_submodule(path).weight[kept] != base.get_submodule(path).weight[kept]
    assert moved.float().mean() > 0.9


def test_windows_longer_than_the_text_name_healing(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, rows=12, sparsity={"healing": {"steps": 1, "seq_len": 2000}})
    with pytest.raises(RecipeInvalid) as raised:
        run_recipe(recipe, tmp_path / "run")
    assert "sparsity.healing.seq_len" in str(raised.value)


def test_a_diverging_rate_is_named() -> None:
    model, dense, masks = pruned("llama")
    section = HealingSection(steps=40, batch_size=2, learning_rate=1e30)
    with pytest.raises(TrainingDiverged, match="diverged") as caught:
        heal(model, dense, masks, windows(80), section, classifier=False)
    assert caught.value.exit_code == 1
