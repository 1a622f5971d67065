"""How many tokens a model reads: one rule for whoever runs it or measures it, in whatever format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shearling.model.checkpoint_safety import CONFIG
from shearling.strict_json import read_json

CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
PADDING_FIRST = frozenset(
    {
        *("camembert", "data2vec-text", "ibert", "longformer", "luke", "mpnet", "roberta", "roberta-prelayernorm"),
        *("xlm-roberta", "xlm-roberta-xl", "xmod"),
    }
)
"""Families whose first token has the position behind that of padding, `pad_token_id`, which is 1 unless they say so."""
DEFAULT_LENGTH = 2048
"""Where nothing says it."""
UNKNOWN_LENGTH = 2**24
"""A tokenizer that does not know says 1e30."""


def stated_length(config: Mapping[str, Any]) -> int | None:
    """What a configuration names as the limit, in tokens; None where it names none.

    Of the positions that it names, some families leave the first ones to padding.
    """
    positions = next((value for key in CONTEXT_KEYS if (value := read_count(config, key)) is not None), None)
    if positions is None or config.get("model_type") not in PADDING_FIRST:
        return positions
    padding = config.get("pad_token_id")
    return positions - (padding if isinstance(padding, int) else 1) - 1


def context_length(config: Mapping[str, Any], tokenizer: Any) -> int:
    """Most tokens that a model reads: of its configuration, else of its tokenizer, else `DEFAULT_LENGTH`."""
    stated = stated_length(config)
    if stated is not None:
        return stated
    length = getattr(tokenizer, "model_max_length", None)
    return length if isinstance(length, int) and 0 < length < UNKNOWN_LENGTH else DEFAULT_LENGTH


def read_context_length(directory: Path, tokenizer: Any) -> int:
    """`context_length` of the model in a directory, in any format."""
    return context_length(read_json(directory / CONFIG), tokenizer)


def read_count(config: Mapping[str, Any], key: str) -> int | None:
    """A number above 0 of a configuration, or of the part of it that is about text."""
    nested = config.get("text_config")
    for scope in (config, nested if isinstance(nested, dict) else {}):
        value = scope.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None
