"""Prompts as a model has read them: one beginning of text, wherever it comes from, and no end that nobody wrote."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

Encode = Callable[[str, bool], Sequence[int]]
"""Token ids of a text, with or without the special tokens that the tokenizer adds to a text."""


def encode_prompt(text: str, encode: Encode, *, beginning: str, ends: Collection[int]) -> list[int]:
    """Token ids of a text that goes on, and that no chat template wrote.

    Args:
        text: the prompt.
        encode: of the runtime.
        beginning: the beginning-of-text token as text; empty where there is none. A text that brings it gets no second.
        ends: ids of end-of-text tokens, one of which some tokenizers append to every text.
    """
    if beginning and text.startswith(beginning):
        return list(encode(text, False))
    ids = list(encode(text, True))
    # Of another text: this one may bring an end itself.
    last = list(encode("a", True))[-1:]
    return ids[:-1] if last and last[0] in ends else ids


def encode_prompt_in_genai(text: str, tokenizer: Any) -> list[int]:
    """The same by a tokenizer of OpenVINO GenAI.

    Raises:
        RuntimeError: it cannot read the text.
    """

    def encode(text: str, special: bool) -> list[int]:
        return [int(token) for token in tokenizer.encode(text, add_special_tokens=special).input_ids.data[0]]

    return encode_prompt(text, encode, beginning=tokenizer.get_bos_token(), ends=[tokenizer.get_eos_token_id()])
