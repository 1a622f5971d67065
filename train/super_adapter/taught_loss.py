"""What a dense teacher adds to the training loss: the distance of the student's predictions from the teacher's.

At the positions of the prompt, where there is no label, it keeps the language of the base; at the labelled ones it
says how sure to be. Like the loss of the labels it is computed only where it counts, in blocks that fit the cache.

Two tensors as large as the logits are held, as the loss of the labels alone holds them (`causal_loss`): the student's,
and the teacher's, in whose place the gradient of both parts comes. They have a row for every labelled position of a
micro-batch, however many there are, and for `MOST_TAUGHT_POSITIONS` of the others at most: a long prompt costs nothing,
and a text that is labelled from end to end as much as without a teacher.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shearling.calibration.divergence import BLOCK_POSITIONS
from shearling.recipe.training import MOST_TAUGHT_POSITIONS, TeacherSection
from train.super_adapter.causal_loss import head_sees_only
from train.super_adapter.tokenised_rows import IGNORED_LABEL, next_is_text, next_labels


@dataclass(frozen=True)
class Teacher:
    """Who teaches, and what counts how much.

    Attributes:
        model: a causal language model of the student's tokens, in eval mode, without gradients.
        section: the weights of the terms.
    """

    model: nn.Module
    section: TeacherSection


def taught_loss(
    network: nn.Module,
    batch: Mapping[str, Tensor],
    teacher: Teacher,
    *,
    called: nn.Module | None = None,
    items: Tensor | float | None = None,
    teaching: float = 1.0,
) -> Tensor:
    """Cross-entropy of the labels, a sum divided by `items`, and weighted means over this micro-batch of KL(teacher ||
    student) of the next token.

    Args:
        network: the student; see `causal_loss`.
        batch: as for `causal_loss`.
        teacher: sees the same rows.
        called: what is called in place of the network.
        items: what the sum over labels is divided by; their number where it is None.
        teaching: what the teacher's part is multiplied by.

    Returns:
        Scalar, float32.
    """
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    labels, section = next_labels(batch), teacher.section
    labelled = labels != IGNORED_LABEL
    compared = labelled | _thin_out(next_is_text(batch) & ~labelled, MOST_TAUGHT_POSITIONS)
    logits, hidden = _predict(network, inputs, compared, called=called)
    with torch.no_grad():
        wanted, wanted_hidden = _predict(teacher.model, inputs, compared)
    # Sizes of one family fill their vocabulary up to different numbers of logits.
    both = min(logits.shape[-1], wanted.shape[-1])
    logits, wanted = logits[:, :both], wanted[:, :both]
    targets = labels[compared]
    is_label = targets != IGNORED_LABEL
    learnt = int(is_label.sum())
    others = len(targets) - learnt
    shares = teaching * torch.where(is_label, section.answer / max(1, learnt), section.prompt / max(1, others))
    label_shares = is_label.float() / (max(1, learnt) if items is None else items)
    loss: Tensor = _TaughtSum.apply(logits, wanted, targets, label_shares, shares)
    if section.hidden:
        aim = wanted_hidden.float()
        loss = loss + teaching * section.hidden * (hidden.float() - aim).square().mean() / aim.square().mean()
    return loss


class _TaughtSum(torch.autograd.Function):
    """Sum over positions of label_share * cross-entropy + share * KL(softmax(wanted) || softmax(logits)), block by
    block in float32; the gradient takes the place of `wanted`, where that has the logits' type.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, wanted: Tensor, targets: Tensor, label_shares: Tensor, shares: Tensor
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=logits.device)
        gradient = wanted if wanted.dtype == logits.dtype else torch.empty_like(logits)
        for start in range(0, len(logits), BLOCK_POSITIONS):
            block = slice(start, start + BLOCK_POSITIONS)
            found, aim = logits[block].float().log_softmax(-1), wanted[block].float().log_softmax(-1)
            # What has no label has no share either, whichever token stands there.
            chosen, label_share = targets[block, None].clamp(min=0), label_shares[block, None]
            share, probability = shares[block, None], aim.exp()
            total += aim.sub_(found).mul_(probability).mul_(share).sum()
            total -= (label_share * found.gather(1, chosen)).sum()
            change = found.exp_().mul_(share + label_share).sub_(probability.mul_(share))
            gradient[block] = change.scatter_add_(1, chosen, -label_share)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0].to(gradient.dtype), None, None, None, None


def _predict(
    model: nn.Module, inputs: Mapping[str, Tensor], positions: Tensor, *, called: nn.Module | None = None
) -> tuple[Tensor, Tensor]:
    """Logits [positions, vocabulary], and the hidden states [positions, width] that the head makes them of."""
    with head_sees_only(model.get_output_embeddings(), positions) as seen:  # type: ignore[operator] # a transformers model
        logits = (called or model)(**inputs, use_cache=False).logits
    return logits.reshape(-1, logits.shape[-1]), seen[0][0]


def _thin_out(positions: Tensor, most: int) -> Tensor:
    """At most so many of the positions, at even distances."""
    places = positions.flatten().nonzero().flatten()
    if len(places) <= most:
        return positions
    kept = torch.zeros_like(positions).flatten()
    kept[places[torch.arange(most, device=places.device) * len(places) // most]] = True
    return kept.view(positions.shape)
