"""Channels in the order of their importance, so that a prefix keeps what matters most.

Cutting a width keeps a prefix of its channels (LoNAS truncates them in their original order). Sorting them once, before
training, changes no function: rows of what produces a width and columns of what consumes it move together. The frozen
model on disk stays as it is; the order is stored with the super-adapter, is bound to the weights that it was made for,
and is applied to them whenever the super-network is assembled.

An order is a permutation of units: single channels of a feed-forward width, all heads of one key-value head of an
attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shearling.elastic.mask import Masks, PackedMasks
from shearling.elastic.search_space import Group, SearchSpace
from shearling.errors import ArtefactCorrupt, ArtefactMismatch, ArtefactMissing

if TYPE_CHECKING:
    from torch import Tensor, nn

REORDERING_FILE = "reordering.safetensors"


@dataclass(frozen=True)
class Reordering:
    """The order of every width of a super-network.

    Attributes:
        method: how importance was measured.
        base_weights_sha256: of the frozen model, by `shearling.model.checkpoint.hash_weights`.
        orders: width group id -> [units] int64, the old place of each unit.
    """

    method: str
    base_weights_sha256: str
    orders: Mapping[str, Tensor]


def save_reordering(path: Path, reordering: Reordering) -> None:
    """Write a reordering as safetensors, its facts in the metadata."""
    from safetensors.torch import save_file

    facts = {"base_weights_sha256": reordering.base_weights_sha256, "method": reordering.method}
    save_file(
        dict(reordering.orders),
        path,
        metadata={"reordering": "|".join(f"{name}={facts[name]}" for name in sorted(facts))},
    )


def load_reordering(path: Path, *, base: Path) -> Reordering:
    """Read what `save_reordering` wrote.

    Args:
        path: the file.
        base: the frozen model that it is to be applied to.

    Raises:
        ArtefactMissing: no such file.
        ArtefactCorrupt: not a reordering, or one of its orders is no permutation.
        ArtefactMismatch: it was made for other weights.
    """
    from safetensors import SafetensorError, safe_open

    from shearling.model.checkpoint import hash_weights

    if not path.is_file():
        raise ArtefactMissing("no reordering here", where=path)
    try:
        with safe_open(path, framework="pt") as file:
            facts = dict(
                item.split("=", 1) for item in (file.metadata() or {}).get("reordering", "").split("|") if "=" in item
            )
            orders = {name: file.get_tensor(name) for name in sorted(file.keys())}
    except SafetensorError as error:
        raise ArtefactCorrupt(f"not a readable reordering: {error}", where=path) from None
    if set(facts) != {"base_weights_sha256", "method"}:
        raise ArtefactCorrupt("its metadata does not name the method and the base", where=path)
    for name, order in orders.items():
        if order.ndim != 1 or order.sort().values.tolist() != list(range(order.numel())):
            raise ArtefactCorrupt("not a permutation", where=f"{path}: {name}")
    found = hash_weights(base)
    if found != facts["base_weights_sha256"]:
        raise ArtefactMismatch(
            f"the channels were ordered for other weights: {facts['base_weights_sha256'][:12]}… "
            f"expected, {found[:12]}… found",
            where=path,
            remedy="Put back the model that the super-adapter was trained on, or train again",
        )
    return Reordering(facts["method"], facts["base_weights_sha256"], orders)


def apply_reordering(
    model: nn.Module, masks: Masks | None, space: SearchSpace, reordering: Reordering
) -> PackedMasks | None:
    """Move the channels of a plain model, in place; its function stays the same.

    Args:
        model: with `nn.Linear` modules at the paths that the space names.
        masks: of its pruned modules, not modified.
        space: has the width groups.
        reordering: one order for every width group.

    Returns:
        The masks in the new order.

    Raises:
        ArtefactMismatch: an order is missing or left over, or has another number of units than its group.
    """
    import torch

    groups = {group.id: group for group in space.width_groups}
    if groups.keys() != reordering.orders.keys():
        odd = sorted(groups.keys() ^ reordering.orders.keys())[0]
        raise ArtefactMismatch("the reordering and the search space disagree on this group", where=odd)
    moved = None if masks is None else PackedMasks.of(masks)
    with torch.no_grad():
        for group_id, group in groups.items():
            order = reordering.orders[group_id]
            if order.numel() * group.head_dim * group.group != group.values[0]:
                raise ArtefactMismatch(
                    f"an order of {order.numel()} units for a width of {group.values[0]}", where=group_id
                )
            for path, axis, channels in group_channels(group, order):
                _move(model.get_submodule(path), axis, channels)
                if moved is not None and path in moved:
                    moved.add({path: moved[path].index_select(axis, channels)})
    return moved


def group_channels(group: Group, units: Tensor) -> Iterator[tuple[str, int, Tensor]]:
    """Path, axis of the weight (0 rows, 1 columns) and channels of everything that a group's units occupy.

    Args:
        group: a width group.
        units: [n] int64, in the order wanted.
    """
    whole, shared = _expand(units, group.head_dim * group.group), _expand(units, group.head_dim)
    yield from ((path, 0, whole) for path in group.modules)
    yield from ((path, 0, shared) for path in group.grouped)
    yield from ((path, 1, whole) for path in group.consumers)


def _expand(units: Tensor, size: int) -> Tensor:
    import torch

    return (units[:, None] * size + torch.arange(size)).flatten()


def _move(module: nn.Module, axis: int, channels: Tensor) -> None:
    for parameter in (module.weight, module.bias) if axis == 0 else (module.weight,):
        if parameter is not None:
            parameter.copy_(parameter.index_select(axis, channels))  # type: ignore[operator] # a linear layer's tensors
