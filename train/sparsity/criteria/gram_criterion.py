"""Criteria that need nothing but X^T X of what enters the layer."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING

from shearling.calibration.gram import Gram
from train.sparsity.criteria.criterion import Pruned
from train.sparsity.pattern import Pattern

if TYPE_CHECKING:
    from torch import Tensor


class GramCriterion(abc.ABC):
    """A `Criterion` whose record says `needs_gram`.

    Args:
        gram: of the layer's inputs, filled by the time that it prunes.
    """

    def __init__(self, gram: Gram) -> None:
        self._gram = gram

    def add(self, inputs: Tensor) -> None:  # noqa: B027 (all there is to gather is gathered for it)
        """Nothing beside the Gram matrix."""

    def prune(self, weight: Tensor, pattern: Pattern, *, where: str) -> Pruned:
        """See `Criterion.prune`; errors of the Hessian as for `Gram.damped`."""
        return self.choose(weight, self._gram.damped(where=where), pattern, where=where)

    @abc.abstractmethod
    def choose(self, weight: Tensor, hessian: Tensor, pattern: Pattern, *, where: str) -> Pruned:
        """Prune a matrix by its Hessian [in, in] float32, positive definite."""
