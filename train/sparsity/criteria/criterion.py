"""What a pruning criterion is: it may look at what enters a linear layer, and then says which of its weights stay.

For every linear layer a fresh one is made, by calling the implementation of its record without arguments. All linears
of a transformer layer watch the calibration text in one pass, in which the layers before them are pruned already; then
each is asked to prune. So a criterion may gather whatever a batch at a time can tell: the norm of each channel (Wanda),
or X^T X, which is [in, in] and needs no batch to be kept.

A criterion that repairs what pruning breaks returns new weights beside the mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from train.sparsity.pattern import Pattern


@dataclass(frozen=True)
class Pruned:
    """What a criterion makes of a weight [out, in].

    Attributes:
        mask: [out, in] bool, True = kept; its zeros are as many as the pattern has, and stand where it allows them.
        weight: [out, in], the new values of what is kept; None leaves them as they are.
    """

    mask: Tensor
    weight: Tensor | None = None


class Criterion(Protocol):
    """One linear layer on its way to being pruned."""

    def add(self, inputs: Tensor) -> None:
        """Take in a batch of what enters the layer; not called unless the method needs calibration.

        Args:
            inputs: [batch, tokens, in] (or [tokens, in]), in the model's dtype; not to be modified.
        """
        ...

    def prune(self, weight: Tensor, pattern: Pattern, *, where: str) -> Pruned:
        """Choose what is kept, after the last batch.

        Args:
            weight: [out, in], in the model's dtype, without gradient; not to be modified.
            pattern: how many go, and among which; `train.sparsity.pattern.keep_mask` turns scores into a mask.
            where: the module, for messages.
        """
        ...
