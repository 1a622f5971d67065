"""What a dense teacher adds to the training loss: the distance of the student's predictions from the teacher's.

At the positions of the prompt, where there is no label, it keeps the language of the base; at the labelled ones it
says how sure to be. Like the loss of the labels it is computed only where it counts, in blocks that fit the cache, and
at no more than `MOST_TAUGHT_POSITIONS` of a micro-batch, so that long texts do not turn into gigabytes of logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from shearling.calibration.divergence import divergence_sum
from shearling.recipe.training import MOST_TAUGHT_POSITIONS, TeacherSection
from train.super_adapter.causal_loss import cross_entropy_sum, head_sees_only
from train.super_adapter.tokenised_rows import IGNORED_LABEL, next_is_text, next_labels


@dataclass(frozen=True)
class Teacher:
    """Who teaches, and what counts how much.

    Attributes:
        model: a causal language model with the student's vocabulary, in eval mode, without gradients.
        section: the weights of the terms.
    """

    model: nn.Module
    section: TeacherSection


class TaughtLoss(NamedTuple):
    """The two parts of the loss, scalars in float32.

    Attributes:
        labels: cross-entropy of the labels, a sum divided by `items`, as `causal_loss` gives it.
        teaching: weighted means over this micro-batch.
    """

    labels: Tensor
    teaching: Tensor


def taught_loss(
    network: nn.Module,
    batch: Mapping[str, Tensor],
    teacher: Teacher,
    *,
    called: nn.Module | None = None,
    items: Tensor | int | None = None,
) -> TaughtLoss:
    """Cross-entropy of the labels, and KL(teacher || student) of the next token.

    Args:
        network: the student; see `causal_loss`.
        batch: as for `causal_loss`.
        teacher: sees the same rows.
        called: what is called in place of the network.
        items: what the sum over labels is divided by; their number where it is None.
    """
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    wanted_labels = next_labels(batch)
    labelled = wanted_labels != IGNORED_LABEL
    compared = labelled | _thin_out(next_is_text(batch) & ~labelled, MOST_TAUGHT_POSITIONS)
    logits, hidden = _predict(network, inputs, compared, called=called)
    with torch.no_grad():
        wanted_logits, wanted_hidden = _predict(teacher.model, inputs, compared)
    is_label = labelled[compared]
    targets = wanted_labels[labelled]
    labels = cross_entropy_sum(logits[is_label], targets) / (len(targets) if items is None else items)
    section = teacher.section
    shares = torch.where(
        is_label, section.answer / max(1, len(targets)), section.prompt / max(1, int((~is_label).sum()))
    )
    teaching = divergence_sum(logits, wanted_logits, shares)
    if section.hidden:
        wanted = wanted_hidden.float()
        teaching = teaching + section.hidden * (hidden.float() - wanted).square().mean() / wanted.square().mean()
    return TaughtLoss(labels, teaching)


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
