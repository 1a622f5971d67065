"""From a recipe's [width] section to width templates over the modules that this model has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shearling.elastic.search_space import WidthTemplate
from shearling.errors import RecipeInvalid
from shearling.model.width_tracing import WidthBlock, find_structure
from shearling.recipe.width import WidthGroupSection, WidthSection

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Lists = tuple[tuple[int, ...], ...]


def width_templates(section: WidthSection | None, config: PretrainedConfig) -> tuple[WidthTemplate, ...]:
    """Resolve the parts that a recipe names.

    Args:
        section: [width]; None gives no templates.
        config: of the model.

    Raises:
        ModelUnsupported: the width of a part cannot be cut in this model; names the module.
        RecipeInvalid: a list does not descend from the full width, splits a head, or there is one for too few layers.
    """
    if section is None:
        return ()
    structure = find_structure(config)
    return tuple(_template(group, structure.require(group.part)) for group in section.groups)


def _template(group: WidthGroupSection, blocks: tuple[WidthBlock, ...]) -> WidthTemplate:
    where = f"width.groups.{group.name}"
    nested = tuple(item for item in group.widths if isinstance(item, tuple))
    lists: Lists = nested or (tuple(item for item in group.widths if isinstance(item, int)),)
    if nested and len(nested) != len(blocks):
        raise RecipeInvalid(f"{len(nested)} lists of widths for {len(blocks)} layers", where=where)
    for layer, block in enumerate(blocks):
        _check(lists[layer if nested else 0], block, where=f"{where}, layer {layer}")
    block = blocks[0]
    return WidthTemplate(
        name=group.name,
        producers=block.producers,
        grouped=block.grouped,
        consumers=(block.consumer,),
        head_dim=block.head_dim,
        group=block.group,
        values=group.widths,
    )


def _check(widths: tuple[int, ...], block: WidthBlock, *, where: str) -> None:
    if widths[0] != block.width or list(widths) != sorted(set(widths), reverse=True):
        raise RecipeInvalid(f"widths must descend from the full width {block.width}, found {list(widths)}", where=where)
    odd = [width for width in widths if width % block.unit]
    if odd:
        shared = (
            f"{block.group} heads of {block.head_dim} that share a key-value head"
            if block.group > 1
            else f"heads of {block.head_dim}"
        )
        raise RecipeInvalid(f"width {odd[0]} is not a multiple of {block.unit}: {shared} stay together", where=where)
