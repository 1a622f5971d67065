"""Texts as a model has read them: one beginning of text, wherever it comes from, and no end that nobody wrote."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class TextEncoder:
    """A tokenizer for texts that go on: a token that ends every text is not appended.

    Args:
        tokenizer: of the model.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        end = tokenizer.eos_token_id
        self._appends_end = end is not None and tokenizer("a")["input_ids"][-1:] == [end]

    def __call__(self, text: str, add_special_tokens: bool | None = None) -> tuple[int, ...]:
        """Token ids.

        Args:
            text: of a prompt, or of prompt and answer.
            add_special_tokens: None leaves it to the tokenizer, unless the text brings its beginning-of-text token.
        """
        if add_special_tokens is None and self._begins(text):
            add_special_tokens = False
        options = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        ids = tuple(self._tokenizer.encode(text, **options))
        return ids[:-1] if self._appends_end and add_special_tokens is not False else ids

    def batch(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Token ids of many texts, each as if it were alone."""
        if not texts:
            return []
        encoded = [tuple(ids) for ids in self._tokenizer(list(texts))["input_ids"]]
        if self._appends_end:
            encoded = [ids[:-1] for ids in encoded]
        return [self(text) if self._begins(text) else ids for text, ids in zip(texts, encoded, strict=True)]

    def _begins(self, text: str) -> bool:
        """Whether the text brings its beginning-of-text token."""
        bos = self._tokenizer.bos_token
        return bool(bos) and text.startswith(bos)
