"""Mixtures of experts: matrices of their own, under the names of the checkpoint, and nothing left uncounted."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from torch import nn

from shearling.elastic.size import measure_model
from shearling.errors import ModelUnsupported
from shearling.model.checkpoint import hash_weights, load_model, load_tokenizer, save_model
from shearling.model.experts import EXPERT_LAYOUTS, has_separate_experts, separate_experts
from shearling.model.layers import find_layers
from shearling.model.skeleton import open_skeleton
from tests.support.tiny_models import (
    FAMILIES,
    MIXTURES,
    VOCABULARY,
    build_tiny,
    fused_experts_config,
    save_tiny,
    tiny_tokenizer,
)
from train.base.artefact import import_base

TOKENS = torch.randint(3, VOCABULARY, (2, 17), generator=torch.Generator().manual_seed(1))


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def test_every_layout_has_a_tiny_model():
    assert {family().config.model_type for family in MIXTURES.values()} == set(EXPERT_LAYOUTS)


@pytest.mark.parametrize("family", MIXTURES)
def test_it_computes_what_transformers_does_and_is_stored_as_transformers_stores_it(family, tmp_path):
    stock = MIXTURES[family]()
    save_tiny(family, tmp_path / "stock")
    model = load_model(tmp_path / "stock")
    assert has_separate_experts(model)
    assert torch.allclose(logits(model), logits(stock), atol=1e-5)
    (tmp_path / "ours").mkdir()
    save_model(copy.deepcopy(model), load_tokenizer(tmp_path / "stock"), tmp_path / "ours")
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("stock", "ours"))
    assert one == two
    assert hash_weights(tmp_path / "ours") == hash_weights(model)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert torch.allclose(logits(again), logits(stock), atol=1e-6)


@pytest.mark.parametrize("family", MIXTURES)
def test_it_streams_layer_by_layer(family, tmp_path):
    skeleton = open_skeleton(save_tiny(family, tmp_path))
    assert skeleton is not None
    assert skeleton.layers_stand_alone
    assert skeleton.places.keys() == skeleton.weights.tensors.keys()


@pytest.mark.parametrize("tied", [True, False])
def test_shards_that_split_the_experts_of_a_layer(tied, tmp_path):
    config = MIXTURES["mixtral"]().config
    config.tie_word_embeddings = tied
    stock = build_tiny(transformers.MixtralForCausalLM, config)
    stock.save_pretrained(tmp_path, max_shard_size="50KB")
    tiny_tokenizer().save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    model = load_model(tmp_path)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert torch.allclose(logits(model), logits(stock), atol=1e-5)
    base = import_base(tmp_path, tmp_path / "base", model_id="tiny/mixture")
    assert base.manifest.details["tie_word_embeddings"] == tied
    assert hash_weights(base.path) == hash_weights(model)


@pytest.mark.parametrize("family", {**FAMILIES, **MIXTURES})
def test_every_matrix_inside_the_layers_is_a_linear_or_named(family):
    model = {**FAMILIES, **MIXTURES}[family]()
    separate_experts(model)
    transformer = find_layers(model)
    counted = sum(linear.weight.numel() for linear in transformer.linears().values())
    matrices = [tensor for layer in transformer.layers for tensor in layer.parameters() if tensor.ndim >= 2]
    assert counted + sum(transformer.left_dense().values()) == sum(tensor.numel() for tensor in matrices)
    assert bool(transformer.left_dense()) == (family in MIXTURES)
    assert all(".gate.weight" in path for path in transformer.left_dense())


@pytest.mark.parametrize("family", MIXTURES)
def test_a_graph_computes_the_same(family):
    model = MIXTURES[family]()
    separate_experts(model)
    layer = find_layers(model).layers[1]
    block = layer.mlp if isinstance(layer.mlp, torch.nn.Module) else None
    assert block is not None
    x = torch.randn(2, 5, model.config.hidden_size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
        graph = torch.export.export(block, (x,), dynamic_shapes=(sizes,)).module()
        other = torch.randn(3, 7, model.config.hidden_size, generator=torch.Generator().manual_seed(3))
        assert torch.allclose(graph(other), block(other), atol=1e-5)


def test_experts_count_by_the_tokens_that_they_see():
    model = MIXTURES["mixtral"]()
    separate_experts(model)
    size = measure_model(model)
    assert size.parameters() == model.num_parameters()
    linears = find_layers(model).linears()
    experts = sum(linear.weight.numel() for path, linear in linears.items() if ".experts." in path)
    others = sum(linear.weight.numel() for path, linear in linears.items() if ".experts." not in path)
    # Two of four experts for each token.
    assert size.macs(tokens=6) == 6 * (others + experts // 2 + model.lm_head.weight.numel())


def test_fused_experts_that_are_not_known_are_refused():
    config = fused_experts_config()
    model = transformers.GptOssForCausalLM(config)
    separate_experts(model)
    with pytest.raises(ModelUnsupported, match=r"would stay dense: mlp\.experts\.") as caught:
        find_layers(model)
    assert "mixtral" in caught.value.remedy
    assert caught.value.exit_code == 3
