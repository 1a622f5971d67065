"""Magnitude: the smallest weights go, whatever they multiply."""

from __future__ import annotations

from typing import TYPE_CHECKING

from train.sparsity.criteria.criterion import Pruned
from train.sparsity.pattern import Pattern, keep_mask

if TYPE_CHECKING:
    from torch import Tensor


class Magnitude:
    """See the module."""

    def add(self, inputs: Tensor) -> None:
        """Nothing follows from the inputs."""

    def prune(self, weight: Tensor, pattern: Pattern, *, where: str) -> Pruned:
        """See `Criterion.prune`."""
        return Pruned(keep_mask(weight.float().abs(), pattern, where=where))
