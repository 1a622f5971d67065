"""Recipes that the demo derives are recipes, and say what they should."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shearling.demo.derived_recipe import RECIPES, SMOKE, derive_recipe, plain_lora, render_toml
from shearling.demo.shears.layout import SHEARS_RECIPE
from shearling.recipe.recipe import Recipe, read_recipe

KEYS = st.text("abcdefghijklmnopqrstuvwxyz_0123456789-", min_size=1, max_size=8)
# DEL is the one character that JSON leaves bare and TOML does not allow.
TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x7f"), max_size=20)
PLAIN = st.booleans() | st.integers(-(2**53), 2**53) | TEXTS | st.lists(TEXTS, max_size=3)
TABLES = st.recursive(
    st.dictionaries(KEYS, PLAIN, max_size=4),
    lambda inner: st.dictionaries(KEYS, PLAIN | inner | st.lists(inner, min_size=1, max_size=3), max_size=4),
    max_leaves=12,
)


@given(TABLES)
def test_rendered_toml_reads_back(data):
    assert tomllib.loads(render_toml(data)) == data


def test_a_full_demo_uses_the_shipped_recipe_itself(tmp_path):
    assert derive_recipe(SHEARS_RECIPE, tmp_path / "x.toml", smoke=False) == SHEARS_RECIPE
    assert not (tmp_path / "x.toml").exists()


@pytest.mark.parametrize("source", [SHEARS_RECIPE, RECIPES / "smollm2-lora.toml"], ids=["shears", "lora"])
def test_a_smoke_recipe_differs_only_in_size(tmp_path, source):
    small, whole = read_recipe(derive_recipe(source, tmp_path / "small.toml", smoke=True)), read_recipe(source)
    assert small.train.steps == SMOKE["train"]["steps"] < whole.train.steps
    assert small.task.rows.test == SMOKE["task"]["rows"]["test"]
    if whole.model.adaptation is not None:
        assert small.model.adaptation.steps == SMOKE["model"]["adaptation"]["steps"] < whole.model.adaptation.steps
        small = small.model_copy(
            update={"model": small.model.model_copy(update={"adaptation": whole.model.adaptation})}
        )
    assert (small.model, small.adapter, small.task.prompt, small.task.asset) == (
        whole.model,
        whole.adapter,
        whole.task.prompt,
        whole.task.asset,
    )


@pytest.mark.parametrize("name", ["smollm2-lonas", "minilm-lonas"])
def test_the_baseline_of_a_super_network_is_the_same_with_nothing_elastic(tmp_path, name):
    source = RECIPES / f"{name}.toml"
    lora, lonas = (
        read_recipe(derive_recipe(source, tmp_path / "lora.toml", smoke=False, lora=True)),
        read_recipe(source),
    )
    assert (lora.model, lora.task, lora.train, lora.seed) == (lonas.model, lonas.task, lonas.train, lonas.seed)
    assert lora.width is None
    assert [group.ranks for group in lora.adapter.groups] == [(lora.adapter.r,)] * len(lonas.adapter.groups)
    assert [group.modules for group in lora.adapter.groups] == [group.modules for group in lonas.adapter.groups]
    assert lora.search.algorithm == "heuristic"
    assert (lora.search.limit, lora.search.macs_seq_len) == (lonas.search.limit, lonas.search.macs_seq_len)
    small = read_recipe(derive_recipe(source, tmp_path / "small.toml", smoke=True, seed=3, lora=True))
    assert (small.train.steps, small.seed, small.search.seed) == (SMOKE["train"]["steps"], 3, 3)


def test_the_baseline_of_a_sandwiched_super_network_trains_once_a_batch():
    recipe = tomllib.loads((RECIPES / "minilm-lonas.toml").read_text())
    recipe["train"] |= {"sandwich": True, "distillation": True}
    recipe["search"] = {"prefer": "cheaper"}
    del recipe["adapter"]["r"]
    assert recipe["adapter"]["groups"][0]["ranks"][0] == 32
    lora = Recipe.model_validate(plain_lora(recipe), strict=False)
    assert lora.train.sandwich is lora.train.distillation is False
    assert lora.adapter.groups[0].ranks == (32,)
    # Of one sub-network there is none that is cheaper.
    assert lora.search.prefer == "accuracy"
