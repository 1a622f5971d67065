"""Recipes: those that are shipped validate, the published schema is current, and a mistake is named with its cure."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import jsonschema
import pytest

from shearling.errors import ArtefactMissing, RecipeInvalid
from shearling.recipe.recipe import (
    read_recipe,
    read_stored_section,
    recipe_json_schema,
    section_as_json,
    stored_recipe,
    stored_section,
)
from train.base.adaptation import adapting_recipe
from train.super_adapter.artefact import recipe_inputs
from train.super_adapter.resumption import deciding_inputs

ROOT = Path(__file__).resolve().parent.parent.parent
SHIPPED = sorted((ROOT / "recipes").glob("*.toml"))

GOOD = """
schema = "shearling.recipe/1"
name = "tickets"
[model]
model_id = "mine"
path = "models/mine"
[task]
name = "tickets"
path = "data/tickets.jsonl"
text = "{{ body }}"
prompt = "Ticket: {{ text }}"
choices = [" no", " yes"]
gold = "{{ urgent }}"
[sparsity]
ratio = 0.5
[adapter]
r = 8
[[adapter.groups]]
name = "all"
modules = ["q_proj"]
ranks = [8, 4]
[train]
steps = 2
"""


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_validate(path):
    assert read_recipe(path).name == path.stem


def test_published_schema_is_current():
    published = json.loads((ROOT / "recipes" / "recipe.schema.json").read_text(encoding="utf-8"))
    assert published == recipe_json_schema(), "run: make schema"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_satisfy_the_published_schema(path):
    jsonschema.validate(tomllib.loads(path.read_text(encoding="utf-8")), recipe_json_schema())


def test_baselines_of_the_demo_learn_the_same_data_for_as_long():
    shears, lora = (read_recipe(ROOT / "recipes" / f"smollm2-{name}.toml") for name in ("shears", "lora"))
    # The baseline is trained like the dense model that ours is pruned from.
    adapting = adapting_recipe(shears)
    assert adapting is not None
    assert (adapting.model, adapting.task, adapting.seed) == (lora.model, lora.task, lora.seed)
    trained = [deciding_inputs(recipe_inputs(recipe))["train"] for recipe in (adapting, lora)]
    assert trained[0] == trained[1]
    assert (shears.adapter.r, shears.adapter.lora_alpha) == (lora.adapter.r, lora.adapter.lora_alpha)
    modules = [
        sorted(module for group in recipe.adapter.groups for module in group.modules) for recipe in (shears, lora)
    ]
    assert modules[0] == modules[1]


def test_paths_are_relative_to_the_recipe(tmp_path):
    (tmp_path / "recipe.toml").write_text(GOOD)
    recipe = read_recipe(tmp_path / "recipe.toml")
    assert recipe.model.path == tmp_path / "models" / "mine"
    assert recipe.task.path == tmp_path / "data" / "tickets.jsonl"


def test_a_directory_of_datasets_is_relative_to_the_recipe_and_other_names_are_left_alone(tmp_path):
    source = 'path = "data/tickets.jsonl"'
    for name, expected in (("data/saved", tmp_path / "data" / "saved"), ("imdb", "imdb"), ("me/saved", "me/saved")):
        (tmp_path / "recipe.toml").write_text(GOOD.replace(source, f'dataset = {{name = "{name}"}}'))
        (tmp_path / "data" / "saved").mkdir(parents=True, exist_ok=True)
        task = read_recipe(tmp_path / "recipe.toml").task
        assert task.dataset.name == expected
        stored = section_as_json(task)
        assert stored["dataset"]["name"] == (expected if isinstance(expected, str) else "./saved")
        assert stored_section(type(task), stored) == stored


ASSET = 'asset = {wheel = "w", version = "1", sha256 = "' + "0" * 64 + '", member = "m"}'


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("steps = 2", "stpes = 2", ["train.stpes: unknown key, did you mean 'steps'?"]),
        ("[sparsity]", "[sparsty]", ["sparsty: unknown key, did you mean 'sparsity'?"]),
        (
            "modules =",
            "module =",
            ["adapter.groups.0.module: unknown key, did you mean 'modules'?", "adapter.groups.0.modules: missing"],
        ),
        ("[model]", "seed = -1\n[model]", ["seed", "greater than or equal to 0"]),
        ("[model]", f"seed = {2**32}\n[model]", ["seed", "less than 4294967296"]),
        ("[train]", "[search]\nseed = -1\n[train]", ["search.seed", "greater than or equal to 0"]),
        ("steps = 2", 'steps = "two"', ["train.steps", "no number"]),
        ("ratio = 0.5", "ratio = 1.5", ["sparsity.ratio", "less than 1"]),
        ("ratio = 0.5", "ratio = nan", ["sparsity.ratio", "finite"]),
        ("ratio = 0.5", 'ratio = 0.6\npattern = "2:4"', ["sparsity: pattern 2:4 prunes exactly 0.5"]),
        ("ratio = 0.5", 'method = "wandas"', ["sparsity.method", "Did you mean 'wanda'", "wanda, sparsegpt"]),
        ('path = "models/mine"', "", ["model: give exactly one of 'path' and 'asset'"]),
        ('path = "models/mine"', f'path = "models/mine"\n{ASSET}', ["model: give exactly one of 'path' and 'asset'"]),
        (
            'path = "data/tickets.jsonl"',
            f'path = "data/tickets.jsonl"\n{ASSET}',
            ["task: give exactly one of 'path', 'asset' and 'dataset'"],
        ),
        ('gold = "{{ urgent }}"', "", ["task: 'choices' and 'gold' belong together"]),
        (
            'gold = "{{ urgent }}"',
            'gold = "{{ urgent }}"\ncompletion = "x"',
            ["task: give either 'choices' with 'gold', or 'completion'"],
        ),
        ('[" no", " yes"]', '[" no", " no"]', ["task: the choice ' no' is there twice"]),
        ('[" no", " yes"]', '["", " yes"]', ["task: a choice is empty"]),
        ("[train]\nsteps = 2", "", ["[adapter] and [train] belong together"]),
        ("[train]\n", '[quantization]\nbits = 4\n[train]\nmemory = "lean"\n', ["trains in float32", "leave memory"]),
        ("[sparsity]\nratio = 0.5", "", ["masked training needs [sparsity]; for a dense base set masked = false"]),
        (
            "[train]\n",
            '[[adapter.groups]]\nname = "all"\nmodules = ["k_proj"]\nranks = [8]\n[train]\n',
            ["2 groups", "'all'"],
        ),
        ("r = 8", "r = 8\nlora_dropout = 0.1", ["adapter: lora_dropout needs the adapter's own input"]),
        ("steps = 2", "steps = 2\nepochs = 1", ["train: give exactly one of 'steps' and 'epochs'"]),
        ("ranks = [8, 4]", "ranks = [8, true]", ["adapter.groups.0.ranks.1", "valid integer"]),
        ("ranks = [8, 4]", "ranks = [8, 0]", ["adapter.groups.0.ranks.1", "greater than or equal to 1"]),
        ('schema = "shearling.recipe/1"', 'schema = "shearling.recipe/2"', ["schema", "shearling.recipe/1"]),
        ("steps = 2", "steps = 2\nsteps = 3", ["not TOML", "Cannot overwrite"]),
        ("steps = 2", "steps = ", ["not TOML", "line"]),
    ],
)
def test_mistakes_are_named(tmp_path, old, new, expected):
    assert old in GOOD
    path = tmp_path / "recipe.toml"
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(RecipeInvalid) as caught:
        read_recipe(path)
    assert caught.value.exit_code == 2
    assert str(path) in str(caught.value)
    for part in expected:
        assert part in str(caught.value)


def test_a_missing_recipe_is_an_artefact_error(tmp_path):
    with pytest.raises(ArtefactMissing) as caught:
        read_recipe(tmp_path / "none.toml")
    assert caught.value.exit_code == 3


def test_bytes_that_are_not_text_are_refused(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeInvalid, match="not TOML"):
        read_recipe(path)


def test_reference_names_every_key():
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    for name, definition in recipe_json_schema()["$defs"].items():
        for key in definition["properties"]:
            assert f"`{key}`" in text, f"{name}.{key} is not in docs/recipes.md"


CHAT = ("[task]\nname", '[task]\nmessages = "chat"\nname')


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('prompt = "Ticket: {{ text }}"\n', ""), "'prompt' is missing"),
        (('text = "{{ body }}"\n', ""), "'text' is missing"),
        (('choices = [" no", " yes"]\ngold = "{{ urgent }}"\n', ""), "a prompt needs an answer"),
        (CHAT, "'messages' holds a whole conversation: leave out prompt, choices"),
        (("[sparsity]", '[[data]]\nname = "tickets"\npath = "x"\ntext = "{{ x }}"\n[sparsity]'), "two tasks are named"),
        (("[sparsity]", '[[data]]\nname = "others"\npath = "x"\n[sparsity]'), "give 'messages', or 'text'"),
        (("[sparsity]", '[[data]]\nname = "o"\npath = "x"\nmesages = "x"\n[sparsity]'), "did you mean 'messages'"),
        (("steps = 2", "steps = 2\npack_tokens = 64\ngroup_by_length = true"), "packed rows leave no padding"),
        (("steps = 2", "steps = 2\npatience = 2"), "patience needs eval_steps"),
        (("steps = 2", 'steps = 2\nreport_to = ["comet"]'), "tensorboard"),
        (("[task]\nname", '[task]\nanswer_metric = "f1"\nname'), "these belong to 'answer'"),
        (("[task]\nname", '[task]\ntools = "t"\nname'), "'tools' belongs to 'messages'"),
    ],
)
def test_contradictions_of_data_are_named(tmp_path, change, message):
    path = tmp_path / "recipe.toml"
    assert change[0] in GOOD
    path.write_text(GOOD.replace(*change))
    with pytest.raises(RecipeInvalid) as caught:
        read_recipe(path)
    assert message in caught.value.message


def read_changed(tmp_path, *changes):
    """The good recipe with changes."""
    text = GOOD
    for change in changes:
        assert change[0] in text
        text = text.replace(*change)
    (tmp_path / "recipe.toml").write_text(text)
    return read_recipe(tmp_path / "recipe.toml")


COMPLETION = ('choices = [" no", " yes"]\ngold = "{{ urgent }}"\n', 'completion = "{{ answer }}"\n')
WIDTHS = ("[train]", '[width]\ngroups = [{name = "w", part = "feed_forward", widths = [8, 4]}]\n[train]')


def test_what_a_recipe_leaves_out_is_what_was_measured_as_better(tmp_path):
    recipe = read_changed(tmp_path)
    assert (recipe.task.train_on_prompt, recipe.task.train_on_end) == (False, False)
    assert (recipe.adapter.lora_alpha, recipe.adapter.scaling) == (128, "rank")
    assert (recipe.train.draw, recipe.train.largest_first, recipe.train.shrinking) == ("shared", 0.5, "at_once")


def test_the_end_of_a_generated_answer_is_learnt_unless_the_recipe_says_otherwise(tmp_path):
    for change in (COMPLETION, TEXT_ALONE):
        assert read_changed(tmp_path, change).task.train_on_end is True
    for said in ("true", "false"):
        changes = (("[task]\n", f"[task]\ntrain_on_end = {said}\n"), COMPLETION)
        assert read_changed(tmp_path, *changes[:1]).task.train_on_end is (said == "true")
        assert read_changed(tmp_path, *changes).task.train_on_end is (said == "true")


def test_widths_are_drawn_and_scaled_as_published_unless_the_recipe_says_otherwise(tmp_path):
    recipe = read_changed(tmp_path, WIDTHS)
    assert (recipe.adapter.lora_alpha, recipe.adapter.scaling) == (64, "constant")
    assert (recipe.train.draw, recipe.train.largest_first) == ("independent", 0)
    assert recipe.task.train_on_prompt is False
    said = (("[train]\n", '[train]\ndraw = "shared"\nlargest_first = 0.25\n'), ("r = 8", 'r = 8\nscaling = "rank"'))
    recipe = read_changed(tmp_path, WIDTHS, *said)
    assert (recipe.train.draw, recipe.train.largest_first, recipe.adapter.scaling) == ("shared", 0.25, "rank")


def test_what_was_stored_before_a_default_changed_means_what_it_meant(tmp_path):
    recipe = read_changed(tmp_path)
    stored = {name: section_as_json(getattr(recipe, name)) for name in ("task", "adapter", "train")}
    changed = {
        "task": {"train_on_prompt": True, "train_on_end": True},
        "adapter": {"lora_alpha": 64, "scaling": "constant"},
        "train": {"draw": "independent", "largest_first": 0},
    }
    older = {
        name: {key: value for key, value in section.items() if key not in changed[name]}
        for name, section in stored.items()
    }
    for name, section in older.items():
        kind = type(getattr(recipe, name))
        assert stored_section(kind, section) == {**stored[name], **changed[name]}
        assert stored_section(kind, stored[name]) == stored[name]
        for key, value in changed[name].items():
            assert getattr(read_stored_section(kind, section), key) == value
    assert stored_recipe({**older, "name": "mine", "data": [older["task"]]}) == {
        **{name: {**section, **changed[name]} for name, section in older.items()},
        "name": "mine",
        "data": [{**older["task"], **changed["task"]}],
    }


TEXT_ALONE = ('prompt = "Ticket: {{ text }}"\nchoices = [" no", " yes"]\ngold = "{{ urgent }}"\n', "")
PROMPTS = ("[task]\n", "[task]\ntrain_on_prompt = true\n")


@pytest.mark.parametrize(
    ("teacher", "changes", "teaches"),
    [
        ("", [PROMPTS], False),
        ("prompt = 3", [PROMPTS], False),
        ("", [TEXT_ALONE], False),
        ("", [TEXT_ALONE, PROMPTS], False),
        ("answer = 0.1", [PROMPTS], True),
        ("hidden = 0.1", [TEXT_ALONE], True),
        ("", [], True),
        ("", [PROMPTS, ("[sparsity]", '[[data]]\nname = "chats"\npath = "x"\nmessages = "m"\n[sparsity]')], True),
    ],
)
def test_a_teacher_has_something_to_teach(tmp_path, teacher, changes, teaches):
    text = f"{GOOD}[train.teacher]\n{teacher}\n"
    for change in changes:
        assert change[0] in text
        text = text.replace(*change)
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    if teaches:
        assert read_recipe(path).train.teacher is not None
    else:
        with pytest.raises(RecipeInvalid, match=r"teaches nothing.*set train_on_prompt = false"):
            read_recipe(path)


def test_conversations_learn_the_assistant_alone_and_paths_of_more_data_are_anchored(tmp_path):
    path = tmp_path / "recipe.toml"
    more = '[[data]]\nname = "chats"\npath = "chats.jsonl"\nmessages = "messages"\nweight = 2\n[sparsity]'
    path.write_text(GOOD.replace("[sparsity]", more))
    recipe = read_recipe(path)
    (chats,) = recipe.data
    assert (chats.form, chats.train_on_prompt, chats.weight) == ("chat", False, 2)
    assert (recipe.task.form, recipe.task.train_on_prompt, recipe.task.weight) == ("choices", False, 1)
    assert chats.path == tmp_path / "chats.jsonl"
    # As a manifest keeps it.
    assert type(chats).model_validate(section_as_json(chats), strict=False).train_on_prompt is False
