"""Pruning of mixtures of experts: each expert by the tokens routed to it, and an honest report."""

from __future__ import annotations

import pytest
import torch
import transformers

from shearling.artefact import open_artefact
from shearling.elastic.mask import MASK_FILE, check_masked_zeros, load_masks
from shearling.model.checkpoint import load_model
from shearling.model.experts import separate_experts
from shearling.model.layers import find_layers
from shearling.recipe.sparsity import ReconstructionSection, SparsitySection
from shearling.strict_json import read_document
from tests.support.tiny_models import MIXTURES, VOCABULARY, save_tiny
from tests.support.wanda_reference import assert_same_masks, lowest_of_each_row, wanda_reference
from train.base.artefact import import_base
from train.sparsity.allocation.evolution import evolved_ratios
from train.sparsity.artefact import SPARSITY_FILE, SparsityReport, write_sparse
from train.sparsity.pattern import make_pattern
from train.sparsity.sparsify import sparsify


def calibration(samples: int = 5, tokens: int = 20) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(3, VOCABULARY, (tokens,), generator=generator) for _ in range(samples)]


def separated(family: str) -> transformers.PreTrainedModel:
    model = MIXTURES[family]()
    separate_experts(model)
    return model


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_wanda_scores_an_expert_by_the_tokens_routed_to_it(family):
    model = separated(family)
    layers = find_layers(model)
    paths = [f"{layers.layers_path}.{index}" for index in range(len(layers.layers))]
    expected, scores = wanda_reference(model, paths, layers.linear_names, calibration(), lowest_of_each_row(0.5))
    found = sparsify(
        model, calibration(), method="wanda", pattern=make_pattern("unstructured", ratio=0.5), batch_size=2
    )
    assert_same_masks(dict(found.masks), expected, scores)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_an_expert_that_no_token_reaches_goes_by_magnitude(method, capsys):
    model, text = separated("qwen3_moe"), calibration(samples=1, tokens=1)
    dense = {path: linear.weight.clone() for path, linear in find_layers(model).linears().items()}
    found = sparsify(model, text, method=method, pattern=make_pattern("unstructured", ratio=0.5))
    # One token, two of six experts: four experts of three matrices in each of two layers.
    assert "24 matrices of experts" in " ".join(capsys.readouterr().err.split())
    pattern = make_pattern("unstructured", ratio=0.5)
    experts = {path: mask for path, mask in found.masks.items() if ".experts." in path}
    assert sum(pattern.keep(dense[path].abs()).equal(mask) for path, mask in experts.items()) >= 24
    assert all(
        share == pytest.approx(0.5, abs=0.01)
        for share in (float((~mask).float().mean()) for mask in found.masks.values())
    )


def test_shares_of_layers_are_searched_though_the_text_reaches_few_experts():
    ratios = evolved_ratios(separated("qwen3_moe"), calibration(samples=2, tokens=2), 0.5, seed=0, generations=2)
    assert sum(ratios) / len(ratios) == pytest.approx(0.5)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_all_experts_are_pruned_and_counted_in_the_stock_model(family, tmp_path):
    base = import_base(save_tiny(family, tmp_path / "source"), tmp_path / "base", model_id="tiny/mixture")
    sparse = write_sparse(
        base, tmp_path / "sparse", section=SparsitySection(ratio=0.5), calibration=calibration(), seed=7
    )
    check_masked_zeros(load_model(sparse.path), load_masks(sparse.path / MASK_FILE))
    report = read_document(sparse.path / SPARSITY_FILE, SparsityReport, schema="shearling.sparsity/1")
    # In the model as transformers itself loads it, where experts are fused.
    stock = transformers.AutoModelForCausalLM.from_pretrained(sparse.path)
    matrices = {name: tensor for name, tensor in stock.model.layers.named_parameters() if tensor.ndim >= 2}
    zeros = sum(int((tensor == 0).sum()) for tensor in matrices.values())
    total = sum(tensor.numel() for tensor in matrices.values())
    assert report.zeros == zeros
    assert report.achieved_layers == zeros / total > 0.49
    assert sum(report.left_dense.values()) == sum(
        tensor.numel() for name, tensor in matrices.items() if name.endswith("gate.weight")
    )
    for name, tensor in matrices.items():
        share = float((tensor == 0).float().mean())
        assert share == (0.0 if name.endswith("gate.weight") else 0.5)
    assert open_artefact(sparse.path, kind="sparse").manifest.details["sparsity"]["zeros"] == zeros


@pytest.mark.parametrize(
    "section",
    [
        SparsitySection(allocation="owl", ratio=0.6),
        SparsitySection(method="sparsegpt", reconstruction=ReconstructionSection(matrix_steps=2, layer_epochs=1)),
    ],
)
def test_allocation_and_reconstruction_take_experts_too(section, tmp_path):
    base = import_base(save_tiny("qwen3_moe", tmp_path / "source"), tmp_path / "base", model_id="tiny/mixture")
    sparse = write_sparse(base, tmp_path / "sparse", section=section, calibration=calibration(), seed=7)
    report = read_document(sparse.path / SPARSITY_FILE, SparsityReport, schema="shearling.sparsity/1")
    assert report.achieved_scope == pytest.approx(section.ratio, abs=0.02)
