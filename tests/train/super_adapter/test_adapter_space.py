"""From a recipe's groups to a search space: names are found by structure, and mistakes list what there is."""

from __future__ import annotations

import pydantic
import pytest

from shearling.errors import RecipeInvalid
from shearling.model.layers import find_layers
from shearling.recipe.adapter import AdapterSection
from tests.support.tiny_models import FAMILIES
from train.super_adapter.adapter_space import build_search_space, superfluous_ranks


def build(family, *groups, rank=8):
    sections = tuple(
        {"name": name, "modules": tuple(modules), "ranks": tuple(ranks)} for name, modules, ranks in groups
    )
    transformer = find_layers(FAMILIES[family]())
    return build_search_space(
        AdapterSection(r=rank, lora_alpha=16, masked=True, groups=sections), transformer, model_type=family
    )


@pytest.mark.parametrize(
    ("family", "modules", "expected"),
    [
        ("llama", ["q_proj", "mlp.up_proj"], ("self_attn.q_proj", "mlp.up_proj")),
        ("phi3", ["qkv_proj", "gate_up_proj"], ("self_attn.qkv_proj", "mlp.gate_up_proj")),
        ("bloom", ["query_key_value", "dense_4h_to_h"], ("self_attention.query_key_value", "mlp.dense_4h_to_h")),
        ("bloom", ["self_attention.dense"], ("self_attention.dense",)),
    ],
)
def test_names_are_resolved_by_their_last_parts(family, modules, expected):
    space = build(family, ("g", modules, [8, 4]))
    assert space.templates[0].modules == expected
    assert space.adapter.target_modules == tuple(name.rpartition(".")[2] for name in expected)
    assert space.num_layers == len(space.groups)
    assert set(space.ranks(space.maximal())) <= set(find_layers(FAMILIES[family]()).linears())
    assert space.scaling == 2.0


@pytest.mark.parametrize("ranks", [[4, 8], [8, 8], [16, 8], [4]])
def test_ranks_that_do_not_descend_are_refused_with_the_recipe(ranks):
    """Before a model is imported."""
    with pytest.raises(pydantic.ValidationError, match="the ranks of group 'a' must descend from r = 8"):
        build("llama", ("a", ["q_proj"], ranks))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([("a", ["o_proj2"], [8, 4])], "fits no linear module"),
        ([("a", ["proj"], [8, 4])], "fits no linear module"),
        ([("a", ["q_proj"], [8, 4]), ("b", ["self_attn.q_proj"], [8, 4])], "in the groups 'a' and 'b'"),
    ],
)
def test_mistakes_are_refused_and_name_the_group(groups, message):
    with pytest.raises(RecipeInvalid, match=message) as caught:
        build("llama", *groups)
    assert caught.value.where.startswith("adapter.groups")
    if "fits no" in message:
        assert "self_attn.q_proj, " in caught.value.remedy


def test_ranks_above_that_of_a_matrix_are_told_of_the_smallest_one():
    """Of grouped queries the keys are smaller than what else shares the rank."""
    transformer = find_layers(FAMILIES["mistral"]())
    weights = {path.rpartition(".")[2]: linear.weight for path, linear in transformer.linears_of(0).items()}
    keys = min(weights["k_proj"].shape)
    assert keys < min(weights["q_proj"].shape)
    fits = build("mistral", ("a", ["q_proj", "k_proj"], [keys, 4]), rank=keys)
    assert superfluous_ranks(fits, transformer) == []
    above = build("mistral", ("a", ["o_proj", "k_proj"], [keys + 1, 4]), ("b", ["q_proj"], [keys + 1]), rank=keys + 1)
    (told,) = superfluous_ranks(above, transformer)
    assert told.startswith(f"group 'a' has rank {keys + 1}; an update of model.layers.0.self_attn.k_proj has at most")
    assert f"at most {keys}," in told
