"""Whether a search can do what [search] of a recipe asks for with what the recipe trains: known before the training.

`search.settings.settle` and `shearling.elastic.mixture.open_mixture` refuse the same on the finished run.
"""

from __future__ import annotations

from shearling.elastic.merge_rule import merge_rule
from shearling.elastic.search_space import FORMAT_GROUP, SPARSITY_GROUP, SearchSpace, rounded_count
from shearling.errors import RecipeInvalid
from shearling.recipe.recipe import Recipe
from shearling.recipe.search import SearchSection
from shearling.registry.search_algorithms import SEARCH_ALGORITHMS


def check_search(recipe: Recipe) -> None:
    """Refuse a [search] that contradicts the other sections.

    Raises:
        RecipeInvalid: names the key.
    """
    if recipe.adapter is None:
        return
    _check_choices(recipe, masked=recipe.adapter.masked)
    _check_names(recipe)
    if not _saves_something(recipe, masked=recipe.adapter.masked):
        _check_nothing_saved(recipe)


def _check_choices(recipe: Recipe, *, masked: bool) -> None:
    """What layers choose among."""
    search, chosen = recipe.search, "ratios" if recipe.search.ratios else "layer_formats"
    if not search.ratios and not search.layer_formats:
        return
    if recipe.quantization is not None:
        raise RecipeInvalid(
            "every layer is trained on integers, at its own zeros: there is nothing to choose",
            where=f"search.{chosen}",
            remedy="Leave it or [quantization] out",
        )
    if search.layer_formats and recipe.sparsity is not None and not masked:
        raise RecipeInvalid(
            "ranks that are trained without the mask stay beside the weights, and cannot be exported in integers",
            where="search.layer_formats",
            remedy="Leave it out, or set adapter.masked = true",
        )
    sparsity, variants = recipe.sparsity, recipe.variants
    if search.ratios and (sparsity is None or variants is None):
        raise RecipeInvalid(
            "layers choose among variants with more zeros, and there are none",
            where="search.ratios",
            remedy="Give [variants] these ratios, beside [sparsity]",
        )
    # With another allocation layers are trained at ratios that nobody knows yet, and each may be named.
    if sparsity is not None and variants is not None and sparsity.allocation == "uniform":
        known = {*variants.percents, round(100 * sparsity.ratio)}
        for ratio in (ratio for ratio in search.ratios if round(100 * ratio) not in known):
            raise RecipeInvalid(
                f"no layer is pruned to {ratio:g}", where="search.ratios", remedy="Give [variants] this ratio, too"
            )


def _check_names(recipe: Recipe) -> None:
    """What the choices of layers will be called."""
    search = recipe.search
    if search.layer_formats and search.weight_format not in (None, *search.layer_formats):
        raise RecipeInvalid(
            f"layers choose among {', '.join(search.layer_formats)}, not {search.weight_format}",
            where="search.weight_format",
            remedy="Leave it out",
        )
    if not search.ratios and not search.layer_formats:
        return
    groups = {} if recipe.adapter is None else {group.name: "adapter" for group in recipe.adapter.groups}
    groups |= {} if recipe.width is None else {group.name: "width" for group in recipe.width.groups}
    for name in sorted({SPARSITY_GROUP, FORMAT_GROUP} & groups.keys()):
        raise RecipeInvalid(
            f"a group is named {name!r}, as the choice of every layer will be",
            where=f"{groups[name]}.groups",
            remedy="Name it otherwise",
        )


def check_effort(search: SearchSection, space: SearchSpace) -> None:
    """Refuse a number of evaluations that the algorithm cannot begin with.

    Args:
        search: of the recipe.
        space: that it will search, before layers choose anything but ranks and widths.

    Raises:
        RecipeInvalid: names the key.
    """
    spends = SEARCH_ALGORITHMS.get(search.algorithm).spends
    population = min(search.population, space.size)
    if spends == "generations" and search.evaluations < population:
        raise RecipeInvalid(
            f"{search.evaluations} evaluations are less than one population of {population}",
            where="search.evaluations",
            remedy="Raise it, or lower search.population",
        )
    limited = any(limit is not None for limit in (search.max_cost_share, search.max_bytes, search.max_latency_ms))
    if spends == "everything" and search.evaluations < space.size and not limited:
        raise RecipeInvalid(
            f"the space has {rounded_count(space.size)} sub-networks, more than {search.evaluations} evaluations",
            where="search.evaluations",
            remedy="Raise it, or search with another algorithm",
        )


def _saves_something(recipe: Recipe, *, masked: bool) -> bool:
    search, quantization = recipe.search, recipe.quantization
    if search.cost != "auto":
        return search.cost != "none"
    rule = merge_rule(
        masked_training=masked,
        sparse=recipe.sparsity is not None,
        grid_bits=None if quantization is None else quantization.bits,
    )
    mixes = bool(search.ratios or search.layer_formats)
    return mixes or recipe.width is not None or rule.default == "separate"


def _check_nothing_saved(recipe: Recipe) -> None:
    search = recipe.search
    asked = {
        "max_cost_share": search.max_cost_share is not None,
        "accuracy_delta": search.accuracy_delta is not None,
        "prefer": search.prefer == "cheaper",
    }
    for key in (key for key, is_asked in asked.items() if is_asked):
        raise RecipeInvalid(
            "sub-networks differ in ranks that are merged, and cost the same"
            if search.cost == "auto"
            else "no sub-network is cheaper than another",
            where=f"search.{key}",
            remedy='Say what to save, such as search.cost = "adapter_params"',
        )
