"""Which tokens of a row are its answer: one rule for training, which learns them, and for evaluation, which scores
them.

The rule is that of lm-evaluation-harness for pairs: white space at the end of the prompt goes with the answer, prompt
and answer are encoded as one text, and what follows the tokens of the prompt alone is the answer. Where a token of the
text covers the end of the prompt and the beginning of the answer, it belongs to the answer: the harness would count it
to the prompt, and may find no answer left.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile


def split_answer(
    encode: Callable[[str], tuple[int, ...]], prompt: str, completion: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens of prompt and completion as one text, in two parts.

    Args:
        encode: such as a `shearling.model.text_encoder.TextEncoder`.
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
