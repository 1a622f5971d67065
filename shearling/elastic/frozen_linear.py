"""What every elastic linear layer is: frozen weights, of which the first rows and columns are active."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from shearling.errors import ShapeMismatch


class FrozenLinear(nn.Module):
    """The weight and bias of a linear layer, and how much of them is in use.

    Args:
        base: the linear layer; its parameters are shared, not copied, and stop requiring gradients.
    """

    widens_weights: ClassVar[bool] = True
    """It computes in the type of its inputs, whatever type its weights are stored in."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.weight = base.weight.requires_grad_(False)
        self.bias = None if base.bias is None else base.bias.requires_grad_(False)
        self.active_out, self.active_in = base.out_features, base.in_features
        self._held: Tensor | None = None
        """The weight in use, made once; forgotten when another part is activated."""

    @property
    def in_features(self) -> int:
        """Full width of the input."""
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        """Full width of the output."""
        return self.weight.shape[0]

    def forget(self) -> None:
        """Give up the frozen tensors, once a plain layer has taken their place; the sizes stay known."""
        self.weight = _without_content(self.weight)
        self.bias = None if self.bias is None else _without_content(self.bias)
        self._held = None

    def cut(self, *, out_features: int | None, in_features: int | None) -> None:
        """Use the first rows and columns of the frozen weight from now on; None leaves a side whole.

        Raises:
            ShapeMismatch: not in 1..the full size.
        """
        self.active_out, self.active_in = (
            _active_size(out_features, self.out_features),
            _active_size(in_features, self.in_features),
        )
        self._held = None


def _without_content(parameter: Tensor) -> nn.Parameter:
    return nn.Parameter(parameter.detach().to("meta"), requires_grad=False)


def _active_size(wanted: int | None, full: int) -> int:
    """Number of rows or columns in use.

    Raises:
        ShapeMismatch: not in 1..full.
    """
    if wanted is None:
        return full
    if not 1 <= wanted <= full:
        raise ShapeMismatch(f"width {wanted} is outside 1..{full}")
    return wanted
