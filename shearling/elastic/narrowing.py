"""What a choice of widths cuts: the sizes of every layer, and the masks of what stays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from shearling.elastic.search_space import Choice, SearchSpace
from shearling.model.narrow_layers import Cut, LayerWidths, Sizes

if TYPE_CHECKING:
    from torch import nn

    from shearling.elastic.mask import Masks


def layer_widths(space: SearchSpace, choice: Choice, model: nn.Module) -> LayerWidths | None:
    """The configuration extension of a sub-network; None where the space has no widths.

    Args:
        space: the search space.
        choice: group id -> value.
        model: the super-network's, for the sizes of layers that the space leaves out.
    """
    if not space.width_groups:
        return None
    cuts = space.cuts(choice)
    prefixes = [f"{space.layers_path}.{layer}." for layer in range(space.num_layers)]
    names = dict.fromkeys(path.removeprefix(prefix) for prefix in prefixes for path in cuts if path.startswith(prefix))

    def sizes(side: str) -> dict[str, Sizes]:
        touched = [
            name for name in names if any(getattr(cut, side) for path, cut in cuts.items() if path.endswith(f".{name}"))
        ]
        return {name: tuple(_size(cuts, model, f"{prefix}{name}", side) for prefix in prefixes) for name in touched}

    return LayerWidths(
        layers_path=space.layers_path, out_features=sizes("out_features"), in_features=sizes("in_features")
    )


def _size(cuts: Mapping[str, Cut], model: nn.Module, path: str, side: str) -> int:
    return int(getattr(cuts.get(path), side, None) or getattr(model.get_submodule(path), side))


def cut_masks(masks: Masks, cuts: Mapping[str, Cut]) -> Masks:
    """The masks of a narrowed model: of each the rows and columns that stay."""
    if not cuts:
        return masks
    cut = {path: cuts.get(path, Cut()) for path in masks}
    return {path: mask[: cut[path].out_features, : cut[path].in_features].contiguous() for path, mask in masks.items()}
