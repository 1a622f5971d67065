"""A model's linear layers rounded, layer by layer, each seeing what the rounded layers before it produce."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from shearling.calibration.gram import LayerGrams, layer_error
from shearling.calibration.propagation import Propagation, capture
from shearling.console import progress
from shearling.model.layers import TransformerLayers
from shearling.quantization.rounding import Rounded, round_matrix

if TYPE_CHECKING:
    from torch import Tensor, nn

PASSES = 2
"""Of refitting scales and descending over integers, behind the rounding of each matrix."""
BATCH = 16
"""Windows that run together."""
SMALLEST_GROUP = 16
"""See `narrowed_group`."""


Hold = Callable[[int], AbstractContextManager[None]]


def _hold_all(_index: int) -> AbstractContextManager[None]:
    """Of a model that is in memory as a whole."""
    return nullcontext()


@dataclass(frozen=True)
class RoundedLayers:
    """What was rounded.

    Attributes:
        matrices: module path -> its weight.
        errors: module path -> the squared error of its outputs, as a share of their squares.
    """

    matrices: dict[str, Rounded]
    errors: dict[str, float]


def narrowed_group(width: int, size: int) -> int:
    """The group of a matrix: the size, or half of it, and so on, where that divides the width; 0 where nothing does.

    Args:
        width: columns.
        size: that was asked for.
    """
    while width % size and size > SMALLEST_GROUP:
        size //= 2
    return size if width % size == 0 else 0


def round_layers(
    model: nn.Module,
    transformer: TransformerLayers,
    windows: Sequence[Tensor],
    groups: Mapping[str, int],
    *,
    bits: int,
    bf16: bool,
    hold: Hold = _hold_all,
) -> RoundedLayers:
    """Round linears inside the transformer layers, in place.

    Args:
        model: eval mode, frozen; computes in float32 around its layers.
        transformer: its layers.
        windows: token ids [tokens].
        groups: module path -> columns that share a scale; what is not named stays as it is.
        bits: of an integer.
        bf16: whether hidden states are computed in it.
        hold: has a layer, by its index, in float32 for as long as it is needed.

    Raises:
        ModelUnsupported, NonFiniteWeights: see `shearling.calibration`.
    """
    matrices: dict[str, Rounded] = {}
    errors: dict[str, float] = {}
    device = next(model.parameters()).device
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        # The first layer computes, once, to show the form of what a layer gives.
        with hold(0):
            states = capture(model, transformer, windows, batch_size=BATCH)
        with progress(f"int{bits}, layer by layer", total=len(transformer.layers)) as advance:
            for index, layer in enumerate(transformer.layers):
                linears = {path: item for path, item in transformer.linears_of(index).items() if path in groups}
                with hold(index):
                    routed = {path for path in linears if transformer.is_routed(path)}
                    for path, rounded, error in _round_layer(layer, linears, groups, states, routed, bits=bits):
                        matrices[path], errors[path] = rounded, error
                    if index + 1 < len(transformer.layers):
                        states.advance(layer)
                advance()
    return RoundedLayers(matrices, errors)


def _round_layer(
    layer: nn.Module,
    linears: Mapping[str, nn.Linear],
    groups: Mapping[str, int],
    states: Propagation,
    routed: Collection[str],
    *,
    bits: int,
) -> Iterator[tuple[str, Rounded, float]]:
    """Round the matrices of one layer, in place, by what enters them before any of them is rounded; those of an expert
    that no token is routed to, by their weights alone.
    """
    grams = LayerGrams(linears)
    states.watch(layer, [(linear, partial(grams.watch, path)) for path, linear in linears.items()])
    for path, linear in linears.items():
        # In float32: an autocast would round what is decomposed.
        with torch.autocast(linear.weight.device.type, enabled=False):
            weight, gram = linear.weight.detach(), grams.pop(path)
            unseen = path in routed and not gram.tokens
            hessian = torch.eye(linear.in_features).to(weight) if unseen else gram.damped(where=path)
            rounded = round_matrix(weight, hessian, group_size=groups[path], passes=PASSES, bits=bits)
            error = layer_error(weight, rounded.weight, hessian)
            weight.copy_(rounded.weight)
        # A byte each: all layers' wait until the last is rounded.
        rounded.codes = rounded.codes.to(torch.int8)
        yield path, rounded, error
