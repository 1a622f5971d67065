"""Wanda scores: |weight| times the norm of the input channel it multiplies (Sun et al., 2023, arXiv 2306.11695)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shearling.errors import ModelUnsupported, NonFiniteWeights
from train.sparsity.criteria.criterion import Pruned
from train.sparsity.pattern import Pattern, keep_mask

if TYPE_CHECKING:
    from torch import Tensor


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


class Wanda:
    """The criterion: norms of the calibration text, then scores; see the module."""

    def __init__(self) -> None:
        self._norm = ChannelNorm()

    def add(self, inputs: Tensor) -> None:
        """See `Criterion.add`."""
        self._norm.add(inputs)

    def prune(self, weight: Tensor, pattern: Pattern, *, where: str) -> Pruned:
        """See `Criterion.prune`; arguments and errors of the scores as for `wanda_scores`."""
        return Pruned(keep_mask(wanda_scores(weight, self._norm, where=where), pattern, where=where))
