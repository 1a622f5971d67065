"""Which token ids a model can read: those that its embedding has a row for, however many its tokenizer knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeGuard, cast

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


def readable_ids(model: nn.Module) -> int:
    """How many token ids a model can read, from 0 on.

    Args:
        model: of transformers; on any device, also meta.
    """
    embedding: Any = cast("PreTrainedModel", model).get_input_embeddings()
    return int(embedding.weight.shape[0])


def is_readable(token: int | None, count: int) -> TypeGuard[int]:
    """Whether there is such a token, and a model that reads `count` ids reads it."""
    return token is not None and 0 <= token < count


def padding_id(tokenizer: Any, count: int) -> int:
    """What fills up rows where a mask hides it: the padding token, or that at the end of a text, or the first of all.

    Args:
        tokenizer: of the model; may have no such token, or one that the model has no embedding of.
        count: of the ids that the model can read.
    """
    named: tuple[int | None, ...] = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((token for token in named if is_readable(token, count)), 0)
