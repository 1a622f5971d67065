"""Norms of what enters every linear of the dense model, layer by layer: Wanda's half of a score, without pruning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from shearling.calibration.propagation import IN_MEMORY, Residence, capture
from shearling.model.layers import find_layers
from train.sparsity.criteria.wanda import ChannelNorm

if TYPE_CHECKING:
    from torch import Tensor, nn


def dense_norms(
    model: nn.Module, calibration: Sequence[Tensor], *, residence: Residence = IN_MEMORY
) -> dict[str, ChannelNorm]:
    """Module path -> norm of its inputs.

    Args:
        model: dense; one forward of each sample.
        calibration: token ids [tokens] of each sample.
        residence: brings layers into memory, where the model is not there as a whole.
    """
    transformer = find_layers(model)
    norms = {path: ChannelNorm() for path in transformer.linears()}
    was_training = model.training
    model.eval()
    states = capture(model, transformer, calibration, residence=residence)
    for index, layer in enumerate(transformer.layers):
        with residence.layer(index):
            states.watch(layer, [(linear, norms[path].add) for path, linear in transformer.linears_of(index).items()])
            if index + 1 < len(transformer.layers):
                states.advance(layer)
    model.train(was_training)
    return norms
