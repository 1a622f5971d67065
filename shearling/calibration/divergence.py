"""How far one model's predictions are from another's, and the gradient of that, without a vocabulary in float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BLOCK_POSITIONS = 32
"""Positions of a block; with a vocabulary of 50,000, 6 MB of float32."""


def divergence_sum(logits: Tensor, wanted: Tensor, shares: Tensor) -> Tensor:
    """Sum over positions of share * KL(softmax(wanted) || softmax(logits)), in nats.

    Args:
        logits: [positions, vocabulary], what is trained.
        wanted: likewise, without gradient.
        shares: [positions] float32.

    Returns:
        Scalar, float32.
    """
    total: Tensor = _DivergenceSum.apply(logits, wanted, shares)
    return total


class _DivergenceSum(torch.autograd.Function):
    """Block by block in float32; the gradient share * (softmax(z) - softmax(t)) has the logits' type."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, wanted: Tensor, shares: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=logits.device)
        gradient = torch.empty_like(logits)
        for start in range(0, len(logits), BLOCK_POSITIONS):
            block = slice(start, start + BLOCK_POSITIONS)
            found, target = logits[block].float().log_softmax(-1), wanted[block].float().log_softmax(-1)
            share, probability = shares[block, None], target.exp()
            total += (share * probability * (target - found)).sum()
            gradient[block] = (found.exp_() - probability).mul_(share)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0].to(gradient.dtype), None, None
