"""What every elastic linear layer is: frozen weights, of which the first rows and columns are active."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from shearling.elastic.weight_grid import NearestGrid
from shearling.errors import ShapeMismatch


class FrozenLinear(nn.Module):
    """The weight and bias of a linear layer, and how much of them is in use.

    Args:
        base: the linear layer; its parameters are shared, not copied, and stop requiring gradients.

    Attributes:
        percent: of zeros of the weight in use, where a search chooses it; 0: the layer is as it was trained.
        rounding: what the weight in use is rounded to, where a search chooses it.
    """

    widens_weights: ClassVar[bool] = True
    """It computes in the type of its inputs, whatever type its weights are stored in."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.weight = base.weight.requires_grad_(False)
        self.bias = None if base.bias is None else base.bias.requires_grad_(False)
        self.active_out, self.active_in = base.out_features, base.in_features
        self.percent = 0
        self.rounding: NearestGrid | None = None
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

    def take(self, weight: Tensor, *, percent: int, mask: Tensor | None) -> None:
        """Use another frozen weight from now on, in the type of this one.

        Args:
            weight: [out, in].
            percent: of zeros, see `percent`.
            mask: of the weight, for layers that multiply by one.

        Raises:
            ShapeMismatch: it is of another shape.
        """
        if weight.shape != self.weight.shape:
            raise ShapeMismatch(f"a variant {list(weight.shape)} of a weight {list(self.weight.shape)}")
        like = self.weight
        self.weight = nn.Parameter(weight.to(device=like.device, dtype=like.dtype), requires_grad=False)
        self.percent = percent
        self._held = None

    def round_to(self, bits: int) -> None:
        """Round the weight in use to integers of so many bits from now on; 0: no more."""
        self.rounding = NearestGrid(bits) if bits else None
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
