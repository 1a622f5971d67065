"""Wanda scores: |weight| times the norm of the input channel it multiplies (Sun et al., 2023, arXiv 2306.11695)."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from shearling.errors import ModelUnsupported, NonFiniteWeights

if TYPE_CHECKING:
    from torch import Tensor, nn

    from train.sparsity.propagation import Propagation


class ChannelNorm:
    """Running mean square norm of the input channels of one linear layer, in float32.

    c_j = mean over samples of sum over tokens of x_j^2. Dividing by the number of samples scales every score alike,
    so the order of scores is that of the norm over all tokens.
    """

    def __init__(self) -> None:
        self.samples = 0
        self.mean_square: Tensor | None = None

    def add(self, inputs: Tensor) -> None:
        """Take in [batch, tokens, in] activations (or [tokens, in]), sample by sample, so that the batch size does
        not matter.
        """
        squares = inputs.detach().float().reshape(-1, *inputs.shape[-2:]).square().sum(dim=1)
        for square in squares:
            self.samples += 1
            if self.mean_square is None:
                self.mean_square = square.clone()
            else:
                self.mean_square += (square - self.mean_square) / self.samples


def wanda_scores(weight: Tensor, norm: ChannelNorm, *, where: str) -> Tensor:
    """Score every weight.

    S_ij = |W_ij| * sqrt(c_j)

    Args:
        weight: [out, in], any float dtype.
        norm: of the inputs of this layer.
        where: the module, for the message.

    Returns:
        [out, in] float32.

    Raises:
        ModelUnsupported: no calibration token reached the layer.
        NonFiniteWeights: an activation was NaN or infinite.
    """
    if norm.mean_square is None:
        raise ModelUnsupported(
            "no calibration token reached this layer", where=where, remedy="Give more samples, or prune by magnitude"
        )
    if not norm.mean_square.isfinite().all():
        raise NonFiniteWeights(
            "its calibration inputs hold NaN or infinity", where=where, remedy="Check the base model"
        )
    return weight.detach().float().abs() * norm.mean_square.sqrt()


def measure_norms(layer: nn.Module, linears: dict[str, nn.Linear], states: Propagation) -> dict[str, ChannelNorm]:
    """Forward all calibration text through one layer and watch what enters its linears; one pass serves them all."""
    norms = {name: ChannelNorm() for name in linears}

    def watch(norm: ChannelNorm) -> Any:
        return lambda _module, inputs, _output: norm.add(inputs[0])

    with ExitStack() as hooks:
        for name, linear in linears.items():
            hooks.enter_context(linear.register_forward_hook(watch(norms[name])))
        for _ in states.forward(layer):
            pass
    return norms
