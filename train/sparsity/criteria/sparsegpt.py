"""SparseGPT: weights go where that costs the layer's outputs least, and those that stay make up for it (Frantar and
Alistarh, 2023, arXiv 2301.00774).

With H = XᵀX of the layer's inputs, removing weight w_j of a row costs w_j² / [H⁻¹]_jj, and the others do best by

    w  <-  w - w_j [H⁻¹]_j,: / [H⁻¹]_jj                                        (optimal brain surgeon)

Columns are settled from left to right; of a settled one nothing changes any more, so that H⁻¹ shrinks by a row and a
column each time. The rows of the Cholesky factor of H⁻¹ hold all those inverses (section 3.3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from train.sparsity.criteria.criterion import Pruned
from train.sparsity.criteria.gram_criterion import GramCriterion
from train.sparsity.pattern import Pattern, keep_mask

if TYPE_CHECKING:
    from torch import Tensor

BLOCK_COLUMNS = 128
"""Columns whose mask is chosen together, by weights that have made up for all columns before them; those of an n:m
pattern are chosen m by m (section 3.4)."""
MOST_BLOCKS = 16
"""A wide row has larger blocks, since a choice ranks the whole row."""


class SparseGPT(GramCriterion):
    """The criterion; see the module."""

    def choose(self, weight: Tensor, hessian: Tensor, pattern: Pattern, *, where: str) -> Pruned:
        """See `surgeon_prune`."""
        return surgeon_prune(weight, hessian, pattern, where=where)


def surgeon_prune(weight: Tensor, hessian: Tensor, pattern: Pattern, *, where: str) -> Pruned:
    """Prune a matrix and update what stays.

    Args:
        weight: [out, in], any float dtype; not modified. Its zeros go first, so that what was pruned before stays
            pruned wherever the pattern has room for it.
        hessian: [in, in] float32, positive definite.
        pattern: how many go, and among which.
        where: the module, for messages.

    Returns:
        The mask, and the weights [out, in] float32 under it.
    """
    import torch

    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    factor = torch.linalg.cholesky(inverse, upper=True)  # factor[j, j:] ~ the row of H⁻¹ once the columns before j left
    updated = weight.detach().float().clone()
    zeros, columns = updated == 0, updated.shape[1]
    mask = torch.ones_like(updated, dtype=torch.bool)
    block, competing = _block_columns(columns), getattr(pattern, "block", None)
    for start in range(0, columns, block):
        end = min(start + block, columns)
        if competing is None:
            scores = _scores(updated, factor.diagonal(), zeros)
            chosen = _choose(scores, mask, settled=start, pattern=pattern, where=where)
            mask[:, start:end] = chosen[:, start:end]
        errors = torch.zeros_like(updated[:, start:end])
        for column in range(start, end):
            if competing is not None and column % competing == 0:
                run = slice(column, column + competing)
                scores = _scores(updated[:, run], factor.diagonal()[run], zeros[:, run])
                mask[:, run] = keep_mask(scores, pattern, where=where)
            removed = updated[:, column] * ~mask[:, column]
            error = removed / factor[column, column]
            updated[:, column:end] -= error[:, None] * factor[column, column:end]
            updated[:, column].mul_(mask[:, column])
            errors[:, column - start] = error
        updated[:, end:] -= errors @ factor[start:end, end:]
    return Pruned(mask, updated)


def _scores(updated: Tensor, diagonal: Tensor, zeros: Tensor) -> Tensor:
    """What removing each weight costs; zeros of the incoming weight cost less than any other, whatever an update has
    made of them.
    """
    return (updated / diagonal).square().masked_fill_(zeros, -1)


def _choose(scores: Tensor, mask: Tensor, *, settled: int, pattern: Pattern, where: str) -> Tensor:
    """The mask of whole rows by today's scores, which are changed, in which the columns before `settled` stand as they
    are: ranked before or behind all others.
    """
    # Twice, since one more than a large number may round to the number itself. Where all are zeros none costs anything.
    bound = 2 * scores.max().clamp(min=1) + 1
    scores[:, :settled] = mask[:, :settled] * bound * 2 - bound
    return keep_mask(scores, pattern, where=where)


def _block_columns(columns: int) -> int:
    """A multiple of `BLOCK_COLUMNS`."""
    blocks = -(-columns // BLOCK_COLUMNS)
    return BLOCK_COLUMNS * -(-blocks // MOST_BLOCKS)
