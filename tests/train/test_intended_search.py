"""What a recipe asks of a search is refused before the training exactly where the search would refuse it behind it."""

from __future__ import annotations

import pytest

from search.opening import open_run
from search.settings import recipe_rule, recipe_settings, settle
from search.strategies.grid import Grid
from search.strategies.strategy import Effort, make_strategy
from shearling.errors import RecipeInvalid, ShearlingError
from shearling.recipe.recipe import Recipe
from shearling.recipe.search import SearchSection
from shearling.run import Run
from tests.support.tiny_runs import tiny_recipe
from train.intended_search import check_search
from train.preflight import check_structure
from train.stage import run_recipe

RUNS = {
    "masked": {},
    "plain": {"masked": False},
    "dense": {"masked": False, "sparse": False},
    "variants": {"variants": [0.6]},
    "grid": {"quantization": {"bits": 8}},
    "widths": {"width": {"feed_forward": [100, 60]}},
}
SEARCHES = [
    {},
    {"prefer": "cheaper"},
    {"accuracy_delta": 0.01},
    {"max_cost_share": 0.75},
    {"prefer": "cheaper", "cost": "none"},
    {"prefer": "cheaper", "cost": "adapter_params"},
    {"ratios": [0.6]},
    {"ratios": [0.5, 0.6], "prefer": "cheaper"},
    {"ratios": [0.7]},
    {"layer_formats": ["int8", "int4"]},
    {"layer_formats": ["int8", "int4"], "accuracy_delta": 0.01},
    {"layer_formats": ["int8", "int4"], "weight_format": "fp16"},
    {"evaluations": 4},
    {"evaluations": 4, "algorithm": "random"},
    {"evaluations": 4, "algorithm": "exhaustive"},
    {"algorithm": "rnsga2", "population": 40, "evaluations": 32},
]


@pytest.fixture(scope="module", params=RUNS)
def trained(request, tmp_path_factory) -> tuple[Run, Recipe]:
    directory = tmp_path_factory.mktemp(request.param)
    recipe = tiny_recipe(directory, train={"steps": 1}, **RUNS[request.param])
    run_recipe(recipe, directory / "run")
    return Run(directory / "run"), recipe


def is_carried_out(run: Run, section: SearchSection) -> bool:
    """Whether the search goes past its door, as `search.stage.search` opens it."""
    opened = open_run(run)
    settings = recipe_settings(section)
    sparse = "sparse" in opened.adapter.manifest.parents
    try:
        opened = opened.mixed(ratios=settings.ratios, formats=settings.layer_formats)
        settled = settle(settings, recipe_rule(section), opened.space, sparse=sparse)
        effort = Effort(evaluations=section.evaluations, population=section.population)
        make_strategy(settled.algorithm, Grid.of(opened.space), effort)
    except ShearlingError:
        return False
    return True


@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_the_recipe_is_refused_where_the_search_would_be(trained, search):
    run, recipe = trained
    section = SearchSection.model_validate(search)
    intended = recipe.model_copy(update={"search": section})
    if is_carried_out(run, section):
        check_all(intended, run)
    else:
        with pytest.raises(RecipeInvalid) as caught:
            check_all(intended, run)
        assert caught.value.where.removeprefix("search.") in search
        assert caught.value.remedy


def check_all(intended: Recipe, run: Run) -> None:
    """At the door, and when the model is known."""
    check_search(intended)
    check_structure(intended, run.base)


@pytest.mark.parametrize(("name", "kind"), [("sparsity", "adapter"), ("format", "width")])
def test_no_group_may_be_named_as_what_layers_will_choose(tmp_path, name, kind):
    search = {"layer_formats": ["int8", "int4"]}
    recipe = tiny_recipe(tmp_path, width={"feed_forward": [100, 60]}, search=search)
    section = getattr(recipe, kind)
    first, *others = section.groups
    named = section.model_copy(update={"groups": (first.model_copy(update={"name": name}), *others)})
    check_search(recipe)
    with pytest.raises(RecipeInvalid, match=f"a group is named '{name}'") as caught:
        check_search(recipe.model_copy(update={kind: named}))
    assert caught.value.where == f"{kind}.groups"


def test_it_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(RecipeInvalid, match="ranks that are merged"):
        run_recipe(tiny_recipe(tmp_path, search={"prefer": "cheaper"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_that_is_only_pruned_is_not_searched(tmp_path):
    recipe = tiny_recipe(tmp_path, search={"prefer": "cheaper"})
    check_search(recipe.model_copy(update={"adapter": None, "train": None}))
