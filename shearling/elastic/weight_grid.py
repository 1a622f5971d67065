"""Weights that are trained on a grid of integers (QA-SparsePEFT; SQFT, Muñoz et al., 2024, section 3).

The frozen model is rounded once: every linear weight becomes integers times scales, V = Q t. The scales stay for good.
In the masked form the forward computes

    Q' = clamp(round((W + (s B A) ∘ M) / t)),    y = (Q' t) x

with the gradient passed straight through the rounding, so that what was trained is what is stored, whatever the rank: a
pruned weight is the integer zero. W is not the weight that was rounded but the nearest to it that rounds to Q, so that
training begins at V, which was chosen on calibration text, and every weight still has a distance of its own to the next
integer. In the plain form, and where there is no adapter, the frozen weight is V itself.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from shearling.quantization.layerwise import narrowed_group
from shearling.quantization.rounding import LIMITS, Rounded, fit_scales, in_bytes, nearest, storable

REACH = 0.45
"""How far from its integer a frozen weight may lie, in steps; from half a step on it would round to the next."""


GROUP_SIZE = 64
"""Columns that share a scale in four bits where a layer's format is chosen; less where it is narrow."""


class RoundingGrid(Protocol):
    """What the weight of a layer is rounded to."""

    def round(self, weight: Tensor) -> Rounded:
        """The integers and scales of a weight [out, in] float32; a zero is zero."""
        ...

    def snap(self, weight: Tensor) -> Tensor:
        """The weight of `round`, [out, in] float32."""
        ...


class NearestGrid(NamedTuple):
    """A grid that is laid for whatever weight comes: to the nearest, with the scales that round it best.

    Four bits have a scale for each group of `GROUP_SIZE` columns; a layer that no group divides has eight, as all have
    whose bits are eight, with one scale a row.

    Attributes:
        bits: of an integer.
    """

    bits: int

    def round(self, weight: Tensor) -> Rounded:
        """See `RoundingGrid.round`."""
        rows, columns = weight.shape
        group = narrowed_group(columns, GROUP_SIZE) if self.bits == 4 else 0
        bits, group = (4, group) if group else (8, columns)
        grouped = weight.reshape(-1, group)
        if bits == 4:
            scales = in_bytes(fit_scales(grouped, weight.new_ones(group), bits=bits).reshape(rows, -1)).reshape(-1)
        else:
            scales = grouped.abs().amax(dim=1) / LIMITS[bits][1]
            scales = storable(scales, otherwise=weight.new_ones(()))
        codes = nearest(grouped, scales[:, None], bits=bits)
        return Rounded(codes.reshape(rows, columns), scales.reshape(rows, -1), group, bits)

    def snap(self, weight: Tensor) -> Tensor:
        """See `RoundingGrid.snap`."""
        return self.round(weight).weight


class LayerGrid(NamedTuple):
    """The grid of one matrix.

    Attributes:
        scales: [out, groups] float32, none zero; the groups divide the columns.
        bits: of an integer.
    """

    scales: Tensor
    bits: int

    def round(self, weight: Tensor) -> Rounded:
        """The nearest point of the grid to a weight [out, in] float32; a zero is zero."""
        codes = self._codes(weight).reshape(weight.shape)
        return Rounded(codes, self.scales, weight.shape[1] // self.scales.shape[1], self.bits)

    def snap(self, weight: Tensor) -> Tensor:
        """The weight of `round`, [out, in] float32, in fewer passes."""
        return self._codes(weight).mul_(self.scales[:, :, None]).reshape(weight.shape)

    def _codes(self, weight: Tensor) -> Tensor:
        return nearest(weight.reshape(*self.scales.shape, -1), self.scales[:, :, None], bits=self.bits)


def drawn_into_cells(weight: Tensor, rounded: Rounded) -> Tensor:
    """The weights nearest to `weight`, [out, in], that round to the integers of `rounded`."""
    steps = rounded.scales.abs().repeat_interleave(rounded.group_size, dim=1) * REACH
    centre = rounded.weight
    return centre + (weight - centre).clamp(-steps, steps)
