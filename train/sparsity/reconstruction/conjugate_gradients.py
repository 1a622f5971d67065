"""The best weights under a mask, one matrix at a time (second stage of ALPS, arXiv 2406.07831, section 3.3).

Minimise tr((W - V) H (W - V)ᵀ) over V that is zero outside the mask M. Every row is a linear system of its own, of what
the row keeps; all rows take their steps of conjugate gradients together, with a product with H each, and with the
gradient (V - W) H ∘ M preconditioned by the diagonal of H.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def refit(weight: Tensor, start: Tensor, mask: Tensor, hessian: Tensor, *, steps: int) -> Tensor:
    """Move what a mask keeps towards the least layer error.

    Args:
        weight: [out, in], the dense weight; not modified.
        start: [out, in], where the kept weights begin; not modified.
        mask: [out, in] bool, True = kept.
        hessian: [in, in] float32, positive definite.
        steps: of conjugate gradients; the error falls with each, and as many as a row keeps would be exact.

    Returns:
        [out, in] float32, zero outside the mask.
    """
    import torch

    kept = mask.float()
    diagonal = hessian.diagonal()
    solution = start.float() * kept
    residual = ((weight.float() - solution) @ hessian) * kept
    direction = preconditioned = residual / diagonal
    energy = (residual * preconditioned).sum(dim=1, keepdim=True)
    smallest = torch.finfo(torch.float32).tiny
    for _ in range(steps):
        image = (direction @ hessian) * kept
        # A row that is solved has nothing left to move.
        length = energy / (direction * image).sum(dim=1, keepdim=True).clamp(min=smallest)
        solution = solution + length * direction
        residual = residual - length * image
        preconditioned = residual / diagonal
        next_energy = (residual * preconditioned).sum(dim=1, keepdim=True)
        direction = preconditioned + next_energy / energy.clamp(min=smallest) * direction
        energy = next_energy
    return solution
