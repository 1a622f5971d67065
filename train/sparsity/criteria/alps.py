"""ALPS: the mask and the weights together, by ADMM on the layer's error (Meng et al., 2024, arXiv 2406.07831).

Minimise tr((W - V) H (W - V)ᵀ) over V with the pattern's zeros. V is split in two copies, one free and one with zeros,
which a penalty ρ draws together; with the scaling D = diag(H)^(1/2), by which H has a diagonal of ones (section 3.1):

    V  =  (W H - U + ρ Z) (H + ρ I)⁻¹         the free copy: a ridge regression, by one eigendecomposition of H
    Z  =  the pattern's largest of V + U / ρ    the copy with zeros
    U  =  U + ρ (V - Z)                         what they still disagree on

ρ grows the faster the more the mask changes (their table of factors), and the search ends when the mask rests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from train.sparsity.criteria.criterion import Pruned
from train.sparsity.criteria.gram_criterion import GramCriterion
from train.sparsity.pattern import Pattern, keep_mask

if TYPE_CHECKING:
    from torch import Tensor

FIRST_PENALTY = 0.1
CHECK_EVERY = 3
"""Iterations between two looks at how much the mask has changed."""
PENALTY_GROWTH = ((0.05, 1.3), (0.0025, 1.2), (0.0, 1.1))
"""Share of the mask that has changed since the last look, more than this -> factor of the penalty."""
MOST_ITERATIONS = 60


class Alps(GramCriterion):
    """The criterion; see the module."""

    def choose(self, weight: Tensor, hessian: Tensor, pattern: Pattern, *, where: str) -> Pruned:
        """See `split_prune`."""
        return split_prune(weight, hessian, pattern, where=where)


def split_prune(
    weight: Tensor, hessian: Tensor, pattern: Pattern, *, where: str, most_iterations: int = MOST_ITERATIONS
) -> Pruned:
    """Prune a matrix by ADMM.

    Args:
        weight: [out, in], any float dtype; not modified.
        hessian: [in, in] float32, positive definite.
        pattern: how many go, and among which.
        where: the module, for messages.
        most_iterations: the end, where the mask does not rest before.

    Returns:
        The mask, and the weights [out, in] float32 under it.
    """
    import torch

    scale = hessian.diagonal().sqrt()
    target = weight.detach().float() * scale
    mask = keep_mask(target.abs(), pattern, where=where)
    if mask.all():  # nothing goes, so nothing may change
        return Pruned(mask)
    normal = hessian / scale / scale[:, None]
    values, vectors = torch.linalg.eigh(normal)
    product = target @ normal
    sparse, dual = target * mask, torch.zeros_like(target)
    penalty, looked_at = FIRST_PENALTY, mask
    for iteration in range(1, most_iterations + 1):
        free = ((product - dual + penalty * sparse) @ vectors / (values + penalty)) @ vectors.T
        combined = free + dual / penalty
        mask = keep_mask(combined.abs(), pattern, where=where)
        sparse = combined * mask
        dual += penalty * (free - sparse)
        if iteration % CHECK_EVERY == 0:
            changed = (mask != looked_at).float().mean().item()
            if changed == 0:
                break
            penalty *= next(factor for share, factor in PENALTY_GROWTH if changed > share)
            looked_at = mask
    return Pruned(mask, sparse / scale)
