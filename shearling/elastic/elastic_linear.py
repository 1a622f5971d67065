"""A frozen linear layer without an adapter whose sides can be cut to a prefix: what produces or consumes an elastic
width.
"""

from __future__ import annotations

from torch import Tensor

from shearling.elastic.frozen_linear import FrozenLinear
from shearling.model.stored_types import frozen_product
from shearling.quantization.rounding import Rounded


class ElasticLinear(FrozenLinear):
    """y = W[:out, :in] x + b[:out].

    Args:
        base: the frozen linear layer; its parameters are shared, not copied, and stop requiring gradients.
    """

    def active_weight(self) -> Tensor:
        """[out, in], contiguous: a matrix product may round differently for another memory layout of the same
        numbers. Rounded where a format was chosen.
        """
        weight = self.weight[: self.active_out, : self.active_in].contiguous()
        return weight if self.rounding is None else self.rounding.snap(weight.float()).to(weight.dtype)

    def integers(self) -> Rounded | None:
        """What the active weight is rounded to; None where it is not."""
        weight = self.weight[: self.active_out, : self.active_in].contiguous()
        return None if self.rounding is None else self.rounding.round(weight.float())

    def active_bias(self) -> Tensor | None:
        """[out], or None."""
        return None if self.bias is None else self.bias[: self.active_out]

    def hold(self, *, hold: bool) -> None:
        """Keep the active weight in one piece until the width changes (evaluation of one sub-network)."""
        self._held = self.active_weight() if hold else None

    def forward(self, x: Tensor) -> Tensor:
        """Apply the active part to x [..., in]; returns [..., out]."""
        weight = self._held
        if weight is None:
            rounds = self.rounding is not None
            weight = self.active_weight() if rounds else self.weight[: self.active_out, : self.active_in]
        return frozen_product(x, weight, self.active_bias())

    def extra_repr(self) -> str:
        """Shapes and state for `print(model)`."""
        return f"in_features={self.active_in}/{self.in_features}, out_features={self.active_out}/{self.out_features}"
