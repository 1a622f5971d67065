"""Which tokens of a row are its answer: one rule for training, which learns them, and for evaluation, which scores
them.

The rule is that of lm-evaluation-harness for pairs: white space at the end of the prompt goes with the answer, prompt
and answer are encoded as one text, and what follows the tokens of the prompt alone is the answer. Where a token of the
text covers the end of the prompt and the beginning of the answer, it belongs to the answer: the harness would count it
to the prompt, and may find no answer left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any


class TextEncoder:
    """A tokenizer for texts that go on: a token that ends every text is not appended.

    Args:
        tokenizer: of the model.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        end = tokenizer.eos_token_id
        self._appends_end = end is not None and tokenizer("a")["input_ids"][-1] == end

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


def split_answer(
    encode: Callable[[str], tuple[int, ...]], prompt: str, completion: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens of prompt and completion as one text, in two parts.

    Args:
        encode: such as a `TextEncoder`.
        prompt: what the model reads.
        completion: what it is to answer.

    Returns:
        Tokens of the prompt, none of which covers a character of the completion, and tokens of the answer.
    """
    return split_encoded(encode(prompt + completion), encode(prompt.rstrip()))


def split_encoded(whole: tuple[int, ...], alone: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The same, of token ids.

    Args:
        whole: of prompt and completion.
        alone: of the prompt without white space at its end.
    """
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(whole, alone, strict=False)))
    return whole[:shared], whole[shared:]
