"""The training loss of a causal model, computed only where there is something to learn.

A causal model turns every position into logits over its vocabulary, float32 and tens of thousands wide, and the loss
then drops prompt and padding. Here the head sees just the positions whose next token is a label, and the cross-entropy
works through them in blocks that fit the cache. The value is that of the model's own loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from shearling.calibration.divergence import BLOCK_POSITIONS
from train.super_adapter.tokenised_rows import IGNORED_LABEL, next_labels


def causal_loss(
    network: nn.Module,
    batch: Mapping[str, Tensor],
    *,
    called: nn.Module | None = None,
    items: Tensor | int | None = None,
) -> Tensor:
    """Cross-entropy of the next token, at the labelled positions.

    Args:
        network: a causal language model whose output embeddings are a linear head, followed by elementwise operations
            at most.
        batch: `input_ids`, `attention_mask`, `labels`, each [rows, length]; ignored labels are -100. Packed rows have
            `position_ids` instead of the mask.
        called: what is called in place of the network, such as its wrapper for several processes.
        items: what the sum is divided by; the number of labelled positions where it is None.

    Returns:
        Scalar, float32.
    """
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    wanted = next_labels(batch)
    labelled = wanted != IGNORED_LABEL
    with head_sees_only(network.get_output_embeddings(), labelled):  # type: ignore[operator] # a transformers model; nn.Module types it as a tensor
        logits = (called or network)(**inputs, use_cache=False).logits
    targets = wanted[labelled]
    total = cross_entropy_sum(logits.reshape(-1, logits.shape[-1]), targets)
    return total / (len(targets) if items is None else items)


def cross_entropy_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum of the cross-entropies of logits [positions, vocabulary] and targets [positions], a float32 scalar."""
    total: Tensor = _CrossEntropySum.apply(logits, targets)
    return total


@contextmanager
def head_sees_only(head: nn.Module, positions: Tensor) -> Iterator[list[Tensor]]:
    """Let the output head see just some positions.

    Args:
        head: called with hidden states [rows, length, width].
        positions: [rows, length - 1] bool.

    Yields:
        A list that the hidden states [1, positions, width] of every call are put into.
    """
    seen: list[Tensor] = []

    def select(_head: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        seen.append(arguments[0][:, :-1][positions][None])
        return (seen[-1], *arguments[1:])

    handle = head.register_forward_pre_hook(select)
    try:
        yield seen
    finally:
        handle.remove()


class _CrossEntropySum(torch.autograd.Function):
    """Sum over rows of logsumexp(z) - z[target], in float32; the gradient softmax(z) - onehot takes the logits' place
    and type.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=logits.device)
        gradient = torch.empty_like(logits)
        for start in range(0, len(targets), BLOCK_POSITIONS):
            block = slice(start, start + BLOCK_POSITIONS)
            values, chosen = logits[block].float(), targets[block, None]
            normaliser = values.logsumexp(dim=1, keepdim=True)
            total += (normaliser - values.gather(1, chosen)).sum()
            probability = values.sub_(normaliser).exp_()
            gradient[block] = probability.scatter_add_(1, chosen, torch.full_like(chosen, -1.0, dtype=torch.float32))
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0].to(gradient.dtype), None
