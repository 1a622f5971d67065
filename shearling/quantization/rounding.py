"""A matrix rounded to integers of four or eight bits so that what its layer computes changes least.

Scales are shared by groups of columns, zeros stay zeros, and the error is that of the layer's outputs on calibration
text, tr((W - V) H (W - V)ᵀ) with H = XᵀX. Three steps, each on all rows at once:

    compensate   columns are rounded from left to right, and those that follow make up for the error of each (GPTQ,
                 Frantar et al., 2022, arXiv 2210.17323, algorithm 1). Where a weight is zero nothing is rounded, but
                 what its column should have made up for goes on to the next: pruning and rounding are one pass, as in
                 section 3.5 of SparseGPT (arXiv 2301.00774)
    refit        the scales of a row that are best for its integers, group after group: least squares
    descend      the integer that is best for all others, column after column, until the passes are over

The last two never make the error larger, but for the rounding of scales: to float16, and before the last descent to
bytes times a factor of the row, which the packed form stores them as.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shearling.kernel.packed_scales import bytes_are_smaller

LIMITS = {4: (-8, 7), 8: (-127, 127)}
"""By bits, the least and the most integer. The scale of a group may be negative, so that either end of four bits can be
the longer one."""

SHRINKAGES = 12
SMALLEST_SHRINKAGE, LARGEST_SHRINKAGE = 0.6, 1.0
"""Scales that are tried, as shares of the one that reaches a group's largest weight: many weights round better when
the largest is cut off."""

MOST_BYTE = 127
LARGEST_HALF = 65504.0
LEAST_HALF = 2.0**-24

BLOCK_COLUMNS = 128
"""Columns whose updates are gathered before they reach the columns behind them."""


@dataclass
class Rounded:
    """A matrix on a grid, V = codes * scales.

    Attributes:
        codes: [out, in], whole numbers within `LIMITS`: float32 while they are chosen, int8 where they are kept.
        scales: [out, groups] float32, numbers of float16, none of them zero; see `in_bytes`.
        group_size: columns that share a scale.
        bits: of an integer.
    """

    codes: Tensor
    scales: Tensor
    group_size: int
    bits: int = 4

    @property
    def weight(self) -> Tensor:
        """[out, in] float32."""
        return self.codes * self.scales.repeat_interleave(self.group_size, dim=1)


def round_matrix(weight: Tensor, hessian: Tensor, *, group_size: int, passes: int, bits: int = 4) -> Rounded:
    """Round a matrix; see the module.

    Args:
        weight: [out, in] float32; its zeros stay zero.
        hessian: [in, in] float32, positive definite, such as `Gram.damped` gives.
        group_size: divides `in`.
        passes: of refit and descend.
        bits: of an integer.
    """
    kept = weight != 0
    rounded = compensate(weight, kept, hessian, group_size=group_size, bits=bits)
    # Half the gradient of the error by V; each step keeps it up to date.
    slope = (rounded.weight - weight) @ hessian
    for step in range(passes):
        refit(rounded, slope, hessian)
        if step + 1 == passes:
            rescale(rounded, in_bytes(rounded.scales), slope, hessian)
        descend(rounded, slope, kept, hessian)
    return rounded


def fit_scales(weight: Tensor, importance: Tensor, *, bits: int = 4) -> Tensor:
    """The scale of each row of a group that rounds it best.

    Args:
        weight: [out, columns of one group].
        importance: [columns], of a squared error.
        bits: of an integer.

    Returns:
        [out] float32, numbers of float16; the least where all weights are zero, or too small for any.
    """
    largest = weight.abs().amax(dim=1)
    # The longer end serves the sign with the largest weight.
    sign = torch.where(weight.amax(dim=1) >= -weight.amin(dim=1), -1.0, 1.0)
    full = (sign * largest / -LIMITS[bits][0]).clamp(-LARGEST_HALF, LARGEST_HALF)
    # A larger one would coarsen the bytes of all scales of its row (`in_bytes`).
    least = torch.full_like(full, LEAST_HALF).copysign(full)
    best = torch.full_like(largest, torch.inf)
    chosen = full
    for share in torch.linspace(SMALLEST_SHRINKAGE, LARGEST_SHRINKAGE, SHRINKAGES, device=weight.device):
        scale = storable(full * share, otherwise=least)
        error = ((nearest(weight, scale[:, None], bits=bits) * scale[:, None] - weight).square() * importance).sum(
            dim=1
        )
        better = error < best
        best, chosen = torch.where(better, error, best), torch.where(better, scale, chosen)
    return chosen


def compensate(weight: Tensor, kept: Tensor, hessian: Tensor, *, group_size: int, bits: int = 4) -> Rounded:
    """Round column after column, each by weights that have made up for all columns before it.

    Args:
        weight: [out, in] float32.
        kept: [out, in] bool; elsewhere the integer is zero.
        hessian: [in, in] float32, positive definite.
        group_size: divides `in`.
        bits: of an integer.
    """
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    factor = torch.linalg.cholesky(inverse, upper=True)
    updated, codes = weight.clone(), torch.zeros_like(weight)
    columns = weight.shape[1]
    scales = weight.new_ones(weight.shape[0], columns // group_size)
    for start in range(0, columns, group_size):
        end = start + group_size
        # By weights as they are now; those without a place in the grid say nothing of its step.
        group = updated[:, start:end] * kept[:, start:end]
        scale = scales[:, start // group_size] = fit_scales(group, factor.diagonal()[start:end].pow(-2), bits=bits)
        errors = torch.zeros_like(group)
        for column in range(start, end):
            wanted = updated[:, column]
            code = nearest(wanted, scale, bits=bits) * kept[:, column]
            codes[:, column] = code
            error = (wanted - code * scale) / factor[column, column]
            updated[:, column:end] -= error[:, None] * factor[column, column:end]
            errors[:, column - start] = error
        updated[:, end:] -= errors @ factor[start:end, end:]
    return Rounded(codes, scales, group_size, bits)


def refit(rounded: Rounded, slope: Tensor, hessian: Tensor) -> None:
    """Give each group the scales that are best for its integers, in place.

    With e = V - W and the integers c of a group, the error is least at a change of -(e H c) / (c H c).

    Args:
        rounded: changed.
        slope: [out, in], (V - W) H; kept up to date.
        hessian: [in, in].
    """
    size = rounded.group_size
    for group in range(rounded.scales.shape[1]):
        place = slice(group * size, (group + 1) * size)
        codes = rounded.codes[:, place]
        curvature = ((codes @ hessian[place, place]) * codes).sum(dim=1)
        change = -(slope[:, place] * codes).sum(dim=1) / curvature.clamp_min(torch.finfo(codes.dtype).tiny)
        old = rounded.scales[:, group].clone()
        rounded.scales[:, group] = torch.where(curvature > 0, storable(old + change, otherwise=old), old)
        slope += ((rounded.scales[:, group] - old)[:, None] * codes) @ hessian[place]


def rescale(rounded: Rounded, scales: Tensor, slope: Tensor, hessian: Tensor) -> None:
    """Give the integers other scales, in place.

    Args:
        rounded: changed.
        scales: [out, groups], the new ones.
        slope: [out, in], (V - W) H; kept up to date.
        hessian: [in, in].
    """
    change = (scales - rounded.scales).repeat_interleave(rounded.group_size, dim=1)
    slope += (change * rounded.codes) @ hessian
    rounded.scales = scales


def descend(rounded: Rounded, slope: Tensor, kept: Tensor, hessian: Tensor) -> None:
    """Give each weight the integer that is best for all others as they are, column after column, in place.

    Args:
        rounded: changed.
        slope: [out, in], (V - W) H; kept up to date.
        kept: [out, in] bool; elsewhere the integer stays zero.
        hessian: [in, in].
    """
    columns = rounded.codes.shape[1]
    for start in range(0, columns, BLOCK_COLUMNS):
        block = slice(start, min(start + BLOCK_COLUMNS, columns))
        local, changes = slope[:, block].clone(), torch.zeros_like(slope[:, block])
        for column in range(block.start, block.stop):
            inside = column - start
            scale = rounded.scales[:, column // rounded.group_size]
            old = rounded.codes[:, column]
            wanted = old * scale - local[:, inside] / hessian[column, column]
            code = nearest(wanted, scale, bits=rounded.bits) * kept[:, column]
            change = (code - old) * scale
            rounded.codes[:, column] = code
            changes[:, inside] = change
            local += change[:, None] * hessian[column, block]
        slope += changes @ hessian[block]


def nearest(weight: Tensor, scale: Tensor, *, bits: int) -> Tensor:
    """The integer of each weight that is nearest to it, as whole numbers in float.

    Args:
        weight: of any shape.
        scale: fits it, none zero.
        bits: of an integer.
    """
    return (weight / scale).round_().clamp_(*LIMITS[bits])


def storable(scale: Tensor, *, otherwise: Tensor) -> Tensor:
    """As float16 has it, and another where that is zero or too large."""
    stored = scale.half().to(scale.dtype)
    return torch.where((stored == 0) | stored.isinf(), otherwise, stored)


def in_bytes(scales: Tensor) -> Tensor:
    """Scales as a byte, -127 to 127 without zero, times a factor of their row.

    The factor is a whole number of four bits times a power of two, so that each product is a float16.
    `shearling.kernel.packed_format` stores such bytes, which a row of few groups has no use for; its scales stay as
    they are.

    Args:
        scales: [rows, groups], numbers of float16, none zero.
    """
    if not bytes_are_smaller(scales.shape[1]):
        return scales
    least = scales.abs().amax(dim=1, keepdim=True) / MOST_BYTE
    # Of 8 to 16 steps; none may be finer than those of float16.
    step = torch.ldexp(torch.ones_like(least), (torch.frexp(least).exponent - 4).clamp_min(-24))
    factor = (least / step).ceil() * step
    whole = (scales / factor).round()
    whole = torch.where(whole == 0, scales.sign(), whole)
    return torch.minimum(whole.abs(), (LARGEST_HALF / factor).floor()) * whole.sign() * factor
