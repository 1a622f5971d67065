"""What a recipe asks of a search is refused before the training exactly where the search would refuse it behind it."""

from __future__ import annotations

import pytest

from search.opening import open_run
from search.settings import recipe_rule, recipe_settings, settle
from shearling.errors import RecipeInvalid, ShearlingError
from shearling.recipe.recipe import Recipe
from shearling.recipe.search import SearchSection
from shearling.run import Run
from tests.support.tiny_runs import tiny_recipe
from train.intended_search import check_search
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
        settle(settings, recipe_rule(section), opened.space, sparse=sparse)
    except ShearlingError:
        return False
    return True


@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_the_recipe_is_refused_where_the_search_would_be(trained, search):
    run, recipe = trained
    section = SearchSection.model_validate(search)
    intended = recipe.model_copy(update={"search": section})
    if is_carried_out(run, section):
        check_search(intended)
    else:
        with pytest.raises(RecipeInvalid) as caught:
            check_search(intended)
        assert caught.value.where.removeprefix("search.") in search
        assert caught.value.remedy


def test_it_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(RecipeInvalid, match="ranks that are merged"):
        run_recipe(tiny_recipe(tmp_path, search={"prefer": "cheaper"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_that_is_only_pruned_is_not_searched(tmp_path):
    recipe = tiny_recipe(tmp_path, search={"prefer": "cheaper"})
    check_search(recipe.model_copy(update={"adapter": None, "train": None}))
