"""The search spaces that LoNAS published, as recipes: groups, members and sizes (algorithms 1.1), on shapes alone."""

import math
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BloomConfig, LlamaConfig

from shearling.model.head import auto_class
from shearling.model.layers import find_layers
from shearling.recipe.recipe import read_recipe
from train.super_adapter.adapter_space import build_search_space
from train.super_adapter.width_space import width_templates

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
CONFIGS = {
    "llama-7b-lonas": LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
    ),
    "llama-13b-lonas": LlamaConfig(
        hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40
    ),
    "bloomz-7b1-lonas": BloomConfig(hidden_size=4096, n_layer=30, n_head=32, vocab_size=250880),
    "bert-base-lonas": BertConfig(architectures=["BertForSequenceClassification"]),
}


def space_of(name):
    recipe, config = read_recipe(RECIPES / f"{name}.toml"), CONFIGS[name]
    with torch.device("meta"):
        transformer = find_layers(auto_class(config).from_config(config))
    return build_search_space(
        recipe.adapter, transformer, model_type=config.model_type, widths=width_templates(recipe.width, config)
    )


@pytest.mark.parametrize(
    ("name", "decisions"),
    [("llama-7b-lonas", 96), ("llama-13b-lonas", 120), ("bloomz-7b1-lonas", 90), ("bert-base-lonas", 36)],
)
def test_the_number_of_decisions_is_the_published_one(name, decisions):
    assert sum(len(group.values) > 1 for group in space_of(name).groups) == decisions


def test_llama_7b():
    space = space_of("llama-7b-lonas")
    assert round(math.log10(space.size), 1) == 41.6
    heuristic = space.heuristic()
    assert {value for group, value in heuristic.items() if group.endswith("feed_forward")} == {8256}
    assert {value for group, value in heuristic.items() if not group.endswith("feed_forward")} == {32}
    cuts = space.cuts(heuristic)
    assert (cuts["model.layers.3.mlp.gate_proj"].out_features, cuts["model.layers.3.mlp.down_proj"].in_features) == (
        8256,
        8256,
    )


def test_llama_13b_has_no_adapter_on_the_gate():
    space = space_of("llama-13b-lonas")
    assert "gate_proj" not in space.adapter.target_modules
    assert space.widths(space.minimal())["model.layers.39.mlp.gate_proj"] == 6912


def test_bert_base_has_other_widths_in_every_layer():
    space = space_of("bert-base-lonas")
    widths = space.widths(space.minimal())
    assert widths["bert.encoder.layer.10.attention.self.key"] == 192
    assert widths["bert.encoder.layer.5.intermediate.dense"] == 175
    assert space.heuristic()["layers.0.attention"] == 768
    assert space.heuristic()["layers.10.attention"] == 704
