"""Mask swaps: a weight that stayed changes places with one that went, where that lowers the layer's error (after
SparseSwaps, arXiv 2512.10922).

With D = W - V of a row, the error is D H Dᵀ. Taking out the kept weight v_p and letting in the pruned weight q at the
value that is best for it changes the error by

    2 v_p (D H)_p + v_p² H_pp  -  ((D H)_q + v_p H_pq)² / H_qq

SparseSwaps lets in the old weight w_q; the best value costs nothing more, and loses less. Only weights that compete for
the same place swap, so the mask keeps its pattern.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

ENTRIES_AT_ONCE = 2**18
"""Of a matrix whose rows are looked at together: every pair of a small block is in memory, up to 170 bytes an entry."""
CANDIDATES = 8
"""Weights to take out, and as many to let in, that are looked at in pairs: the best of each kind without H_pq."""


def swap_weights(
    weight: Tensor, start: Tensor, mask: Tensor, hessian: Tensor, *, block: int | None, swaps: int
) -> tuple[Tensor, Tensor]:
    """Do the best swap of every row, so many times or until none helps.

    Args:
        weight: [out, in], the dense weight; not modified.
        start: [out, in], the pruned weight; not modified.
        mask: [out, in] bool, True = kept; not modified.
        hessian: [in, in] float32, positive definite.
        block: weights compete within runs of so many; None: within the row.
        swaps: most swaps of a row.

    Returns:
        The mask, and the weights [out, in] float32 under it; the error of no row is larger than before.
    """
    mask, pruned = mask.clone(), start.float() * mask
    slope = (weight.float() - pruned) @ hessian  # D H
    for _ in range(swaps):
        gain, out_column, in_column, value = _all_best_swaps(pruned, mask, slope, hessian, block or mask.shape[1])
        rows = (gain < -1e-9 * (slope * (weight - pruned)).sum(dim=1)).nonzero().flatten()
        if len(rows) == 0:
            break
        leaving, entering = out_column[rows], in_column[rows]
        removed, entered = pruned[rows, leaving], value[rows]
        slope[rows] += removed[:, None] * hessian[leaving] - entered[:, None] * hessian[entering]
        pruned[rows, leaving], pruned[rows, entering] = 0.0, entered
        mask[rows, leaving], mask[rows, entering] = False, True
    return mask, pruned


def _all_best_swaps(
    pruned: Tensor, mask: Tensor, slope: Tensor, hessian: Tensor, block: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    import torch

    rows = max(1, ENTRIES_AT_ONCE // mask.shape[1])
    parts = zip(pruned.split(rows), mask.split(rows), slope.split(rows), strict=True)
    found = [_best_swaps(*part, hessian, block) for part in parts]
    gain, out_column, in_column, value = (torch.cat(column) for column in zip(*found, strict=True))
    return gain, out_column, in_column, value


def _best_swaps(
    pruned: Tensor, mask: Tensor, slope: Tensor, hessian: Tensor, block: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Per row: change of the error, column that leaves, column that enters, and its value."""
    import torch

    rows, columns = mask.shape
    diagonal, infinity = hessian.diagonal(), torch.inf
    cost_out = (2 * pruned * slope + pruned.square() * diagonal).masked_fill(~mask, infinity)
    gain_in = (slope.square() / diagonal).masked_fill(mask, -infinity)
    count = min(CANDIDATES, block)
    offsets = torch.arange(0, columns, block).view(1, -1, 1)
    leaving = cost_out.view(rows, -1, block).topk(count, largest=False).indices + offsets
    entering = gain_in.view(rows, -1, block).topk(count).indices + offsets
    shape = leaving.shape
    row = torch.arange(rows).view(-1, 1, 1).expand(shape)
    # [rows, blocks, leaving, entering]
    cross = hessian[leaving[..., :, None], entering[..., None, :]]
    pushed = slope[row, entering][..., None, :] + pruned[row, leaving][..., :, None] * cross
    change = cost_out[row, leaving][..., :, None] - pushed.square() / diagonal[entering][..., None, :]
    # A block without `count` kept or `count` pruned weights offers others, which must not be taken.
    impossible = ~mask[row, leaving][..., :, None] | mask[row, entering][..., None, :]
    change, place = change.masked_fill(impossible, infinity).flatten(1).min(dim=1)
    pair, first = place % (count * count), place // (count * count)
    every = torch.arange(rows)
    out_column, in_column = leaving[every, first, pair // count], entering[every, first, pair % count]
    value = (slope[every, in_column] + pruned[every, out_column] * hessian[out_column, in_column]) / diagonal[in_column]
    return change, out_column, in_column, value
