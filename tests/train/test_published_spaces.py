"""The search spaces that LoNAS published, as recipes: groups, members and sizes (algorithms 1.1), on shapes alone; how
answers are found and compared (7.3), and what accuracy may be asked for.
"""

import functools
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

MATH = ("llama-13b-lonas", "bloomz-7b1-lonas")
PUBLISHED_ACCURACY = {
    "llama-7b-lonas": 0.671,
    "llama-13b-lonas": 0.520,
    "bloomz-7b1-lonas": 0.375,
    "bert-base-lonas": 0.7076,
}
"""The best of the tables in algorithms 2.4 and 4, of LoRA, LoNAS or Shears, averaged over the test sets."""
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


@functools.cache
def space_of(name):
    """It is only read."""
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


@pytest.mark.parametrize("name", PUBLISHED_ACCURACY)
def test_training_is_as_published_whatever_the_defaults_are(name):
    """The rule of LoNAS (algorithms 1.3) stands in the recipe itself."""
    recipe = read_recipe(RECIPES / f"{name}.toml")
    assert (recipe.train.draw, recipe.train.largest_first, recipe.adapter.scaling) == ("independent", 0, "constant")
    assert (recipe.train.shrinking, recipe.train.sandwich, recipe.train.distillation) == ("at_once", False, False)
    assert recipe.adapter.lora_alpha == 2 * recipe.adapter.r
    assert recipe.train.model_fields_set >= {"draw", "largest_first", "learning_rate"}
    assert recipe.adapter.model_fields_set >= {"scaling", "lora_alpha"}
    if recipe.model.head == "language_model":
        assert recipe.task.train_on_prompt
        assert recipe.task.train_on_end
        assert recipe.task.model_fields_set >= {"train_on_prompt", "train_on_end"}


@pytest.mark.parametrize(("name", "published"), PUBLISHED_ACCURACY.items())
def test_no_search_asks_for_more_than_the_best_that_was_published(name, published):
    search = read_recipe(RECIPES / f"{name}.toml").search
    assert search.accuracy_delta is not None
    assert (search.reference_accuracy or 0.0) - search.accuracy_delta < published


@pytest.mark.parametrize("name", MATH)
@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("He has 5 + 3 = 8 apples. The answer is 8", "8.0", True),
        ("It takes 576.", "576.0", True),
        ("That makes $1,234.50", "1234.5", True),
        ("The price is 4.50 dollars", "4.5", True),
        ("They walk 0.250 km", "0.25", True),
        ("They walk 0.1250 km", "0.125", True),
        ("There are 100", "100.0", True),
        ("There are 100", "10.0", False),
        ("4.05", "4.5", False),
        ("The change is -3", "-3.0", True),
        ("The change is -3", "3.0", False),
        ("It costs 30 dollars less than plan A.", "30.0", True),
        ("A train needs 4 hours, and so does train B.", "4.0", True),
        ("So the answer is B", "B", True),
        ("5 * 3 = 15, so the correct answer is (C).", "C", True),
        ("Answer: option D", "D", True),
        ("The correct option is A. 12 km", "A", True),
        ("(B).", "B", True),
        ("Option A is 30 dollars, which is less than option B", "30.0", True),
        ("The answer is E) 24 sec.", "E", True),
        ("The answer is E) 24 sec.", "A", False),
        ("I do not know", "0.0", False),
        ("The answer is unknown", "A", False),
    ],
)
def test_numbers_are_compared_as_numbers_and_letters_where_they_are_the_answer(name, text, answer, right):
    from lm_eval.api.metrics import exact_match_hf_evaluate
    from lm_eval.filters.extraction import RegexFilter

    task = read_recipe(RECIPES / f"{name}.toml").task
    assert task.answer_match == "last"
    ((found,),) = RegexFilter(task.answer_pattern, group_select=-1).apply([[text]], [{}])
    score = exact_match_hf_evaluate([found], [answer], regexes_to_ignore=list(task.answer_ignore))
    assert bool(score["exact_match"]) == right, found
