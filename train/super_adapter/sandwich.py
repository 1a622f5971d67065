"""What LoNAS left out and its successors use: the sandwich rule and in-place distillation (Yu et al., 2020, arXiv
2003.11142).

Every micro-batch trains three sub-networks, the largest, the smallest and one drawn uniformly, their gradients
averaged. With distillation the largest learns the labels, and the other two learn its predictions on the same rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shearling.elastic.search_space import Choice
from train.super_adapter.tokenised_rows import IGNORED_LABEL

if TYPE_CHECKING:
    from torch import Tensor


def sandwich(largest: Choice, smallest: Choice, drawn: Choice) -> tuple[Choice, ...]:
    """The choices of one micro-batch; the largest, which teaches, comes first.

    Args:
        largest: of all.
        smallest: of those that the micro-batch may train; where it is the largest, that is trained once.
        drawn: the third one.
    """
    return (largest,) if smallest == largest else (largest, smallest, drawn)


def distillation_loss(student: Tensor, teacher: Tensor, labels: Tensor, *, items: Tensor | int | None) -> Tensor:
    """Mean KL(teacher || student) in nats over what the labels count.

    Args:
        student: logits [batch, tokens, vocabulary] of a decoder, or [batch, classes] of a classifier.
        teacher: likewise, without gradient.
        labels: [batch, tokens], `IGNORED_LABEL` where nothing is learnt; or [batch].
        items: divide by this number instead of the number of rows that count, as the Trainer does across micro-batches.
    """
    student, teacher = _counted(student, labels), _counted(teacher, labels)
    log_student, log_teacher = student.float().log_softmax(-1), teacher.float().log_softmax(-1)
    total: Tensor = (log_teacher.exp() * (log_teacher - log_student)).sum()
    return total / (len(student) if items is None else items)


def label_loss(logits: Tensor, labels: Tensor, *, items: Tensor | int | None) -> Tensor:
    """Cross-entropy over what the labels count, from logits that were computed whole; arguments as for
    `distillation_loss`.
    """
    from torch.nn import functional as F

    targets = labels[:, 1:][labels[:, 1:] != IGNORED_LABEL] if logits.ndim == 3 else labels
    total = F.cross_entropy(_counted(logits, labels).float(), targets, reduction="sum")
    return total / (len(targets) if items is None else items)


def _counted(logits: Tensor, labels: Tensor) -> Tensor:
    """[rows, classes]: of a decoder the positions whose next token is a label."""
    return logits[:, :-1][labels[:, 1:] != IGNORED_LABEL] if logits.ndim == 3 else logits
