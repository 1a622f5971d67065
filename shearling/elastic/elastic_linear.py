"""A frozen linear layer without an adapter whose sides can be cut to a prefix: what produces or consumes an elastic
width.
"""

from __future__ import annotations

from torch import Tensor

from shearling.elastic.frozen_linear import FrozenLinear
from shearling.model.stored_types import frozen_product


class ElasticLinear(FrozenLinear):
    """y = W[:out, :in] x + b[:out].

    Args:
        base: the frozen linear layer; its parameters are shared, not copied, and stop requiring gradients.
    """

    def active_weight(self) -> Tensor:
        """[out, in], contiguous: a matrix product may round differently for another memory layout of the same
        numbers.
        """
        return self.weight[: self.active_out, : self.active_in].contiguous()

    def active_bias(self) -> Tensor | None:
        """[out], or None."""
        return None if self.bias is None else self.bias[: self.active_out]

    def hold(self, *, hold: bool) -> None:
        """Keep the active weight in one piece until the width changes (evaluation of one sub-network)."""
        self._held = self.active_weight() if hold else None

    def forward(self, x: Tensor) -> Tensor:
        """Apply the active part to x [..., in]; returns [..., out]."""
        weight = self.weight[: self.active_out, : self.active_in] if self._held is None else self._held
        return frozen_product(x, weight, self.active_bias())

    def extra_repr(self) -> str:
        """Shapes and state for `print(model)`."""
        return f"in_features={self.active_in}/{self.in_features}, out_features={self.active_out}/{self.out_features}"
