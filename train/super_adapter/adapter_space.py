"""From a recipe's adapter groups to a search space over the modules that this model has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shearling.elastic.search_space import AdapterSpec, GridSpec, RankTemplate, SearchSpace, WidthTemplate
from shearling.errors import RecipeInvalid
from shearling.model.layers import TransformerLayers
from shearling.recipe.adapter import AdapterSection
from shearling.recipe.quantization import QuantizationSection

if TYPE_CHECKING:
    from torch import nn

_TOLD = 4
"""Modules that a message names."""


def build_search_space(
    adapter: AdapterSection,
    transformer: TransformerLayers,
    *,
    model_type: str,
    widths: tuple[WidthTemplate, ...] = (),
    quantization: QuantizationSection | None = None,
) -> SearchSpace:
    """Resolve module names and expand the groups over all layers.

    Args:
        adapter: the [adapter] section.
        transformer: of the model.
        model_type: of its configuration.
        widths: what else is elastic; see `train.super_adapter.width_space`.
        quantization: the [quantization] section, where the weights are trained on a grid.

    Raises:
        RecipeInvalid: a name fits no linear module of a layer, or several, or is in two groups.
    """
    templates = []
    seen: dict[str, str] = {}
    for group in adapter.groups:
        modules = tuple(_resolve(name, transformer, group=group.name) for name in group.modules)
        for module in modules:
            if module in seen:
                raise RecipeInvalid(
                    f"{module} is in the groups {seen[module]!r} and {group.name!r}", where="adapter.groups"
                )
            seen[module] = group.name
        templates.append(RankTemplate(name=group.name, modules=modules, values=group.ranks))
    clash = {template.name for template in templates} & {template.name for template in widths}
    if clash:
        raise RecipeInvalid(
            f"a group of ranks and a group of widths are both named {sorted(clash)[0]!r}", where="width.groups"
        )
    targets = tuple(dict.fromkeys(module.rpartition(".")[2] for template in templates for module in template.modules))
    return SearchSpace(
        model_type=model_type,
        num_layers=len(transformer.layers),
        layers_path=transformer.layers_path,
        adapter=AdapterSpec(
            r_max=adapter.r,
            alpha=adapter.lora_alpha,
            dropout=adapter.lora_dropout,
            scaling="alpha_over_rank" if adapter.scaling == "rank" else "alpha_over_r_max",
            masked_training=adapter.masked,
            target_modules=targets,
            grid=None if quantization is None else GridSpec(bits=quantization.bits),
        ),
        templates=(*templates, *widths),
    )


def superfluous_ranks(space: SearchSpace, transformer: TransformerLayers) -> list[str]:
    """Of every group whose largest rank is above that of its smallest matrix, a sentence for users.

    B A has at most the rank min(inputs, outputs) of the matrix, whatever the inner size.
    """
    told = []
    linears = transformer.linears()
    for template in space.templates:
        if isinstance(template, RankTemplate):
            paths = [
                transformer.module_path(layer, name) for layer in range(space.num_layers) for name in template.modules
            ]
            path = min(paths, key=lambda path: _full_rank(linears[path]))
            if template.values[0] > _full_rank(linears[path]):
                told.append(
                    f"group {template.name!r} has rank {template.values[0]}; an update of {path} has at most "
                    f"{_full_rank(linears[path])}, and more only costs steps and memory"
                )
    return told


def _full_rank(linear: nn.Linear) -> int:
    return min(linear.in_features, linear.out_features)


def _resolve(name: str, transformer: TransformerLayers, *, group: str) -> str:
    # A whole name wins: BERT has both output.dense and attention.output.dense.
    matches = (
        [name]
        if name in transformer.linear_names
        else [known for known in transformer.linear_names if known.endswith(f".{name}")]
    )
    if len(matches) == 1:
        return matches[0]
    # Hundreds of experts are told by some of them.
    more = f" and {len(matches) - _TOLD} more" if len(matches) > _TOLD else ""
    problem = "fits no linear module" if not matches else f"fits {', '.join(matches[:_TOLD])}{more}"
    own = [known for known in transformer.linear_names if known not in transformer.routed_names]
    raise RecipeInvalid(
        f"{name!r} {problem}",
        where=f"adapter.groups.{group}",
        remedy=f"A layer has: {', '.join(own)}",
    )
