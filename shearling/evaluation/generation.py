"""Greedy decoding in batches, on any runtime that keeps the keys and values of what it has read.

Prompts are padded on the left, so that all rows of a batch end at the same place; the attention mask hides the padding
and positions are counted from the first real token. A row is done at a token that ends a text, at a stop string or at
the limit; the batch goes on until every row is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shearling.errors import NonFiniteWeights, UsageError

DEFAULT_NEW_TOKENS = 256
"""Most tokens of an answer where a task gives no number; the harness's own default."""

LIMIT_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""What tasks call the limit, in the harness's order of precedence."""

Step = Callable[[Tensor, Tensor, Tensor, bool], Tensor]
"""Reads tokens and gives the logits after the last of each row.

Takes input_ids [rows, new], attention_mask [rows, read before + new], position_ids [rows, new], each int64, and whether
what was read before is to be forgotten. Returns [rows, vocabulary] float32."""


@dataclass(frozen=True)
class Stopping:
    """When an answer ends.

    Attributes:
        limit: most tokens.
        strings: that end it, and are no part of it.
    """

    limit: int
    strings: tuple[str, ...]

    @property
    def tail(self) -> int:
        """Tokens at the end that can hold a stop string: a token has a byte at least."""
        return 1 + max((len(string.encode()) for string in self.strings), default=0)

    def cut(self, text: str) -> str:
        """The text before the first stop string."""
        ends = [place for string in self.strings if (place := text.find(string)) >= 0]
        return text[: min(ends)] if ends else text


def read_stopping(options: Mapping[str, Any], *, task: str) -> Stopping:
    """What a harness task's `generation_kwargs` ask for.

    Raises:
        UsageError: they ask for more than greedy decoding.
    """
    if options.get("do_sample") or float(options.get("temperature") or 0) > 0 or int(options.get("num_beams") or 1) > 1:
        raise UsageError(
            "this task samples or searches with beams", where=task, remedy="Use a task that decodes greedily"
        )
    limits = [int(options[name]) for name in LIMIT_NAMES if options.get(name) is not None]
    until = options.get("until") or ()
    strings = (until,) if isinstance(until, str) else tuple(until)
    return Stopping(limits[0] if limits else DEFAULT_NEW_TOKENS, tuple(string for string in strings if string))


def generation_batches(prompts: Sequence[Sequence[int]], batch_size: int, *, max_tokens: int) -> Iterator[list[int]]:
    """Places of prompts, those of like length together, longest first; a longer one than `max_tokens` is alone."""
    batch: list[int] = []
    for place in sorted(range(len(prompts)), key=lambda place: (-len(prompts[place]), place)):
        longest = len(prompts[batch[0]]) if batch else 0
        if batch and (len(batch) == batch_size or (len(batch) + 1) * longest > max_tokens):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def generate_greedily(
    step: Step, prompts: Sequence[Sequence[int]], stopping: Stopping, *, tokenizer: Any, ends: Collection[int]
) -> list[str]:
    """Continue a batch of prompts.

    Args:
        step: of the model.
        prompts: token ids, none empty.
        stopping: when an answer ends.
        tokenizer: of the model.
        ends: the tokens that end a text, one at least.

    Returns:
        Per prompt the text that follows, without what ended it.

    Raises:
        NonFiniteWeights: the model computes NaN or infinity.
    """
    input_ids, attention_mask = _pad_left(prompts, min(ends))
    position_ids = (attention_mask.cumsum(1) - 1).clamp(min=0)
    answers: list[list[int]] = [[] for _ in prompts]
    going = set(range(len(prompts)))
    for count in range(stopping.limit):
        logits = step(input_ids, attention_mask, position_ids, count == 0)
        if not logits.isfinite().all():
            raise NonFiniteWeights("the model gives logits that are NaN or infinite", where="generation")
        chosen = logits.argmax(-1)
        for place in sorted(going):
            token = int(chosen[place])
            if token in ends:
                going.discard(place)
                continue
            answers[place].append(token)
            if stopping.strings:
                recent = tokenizer.decode(answers[place][-stopping.tail :], skip_special_tokens=True)
                if any(string in recent for string in stopping.strings):
                    going.discard(place)
        if not going:
            break
        input_ids, position_ids = chosen[:, None], position_ids[:, -1:] + 1
        attention_mask = torch.cat([attention_mask, torch.ones_like(input_ids)], dim=1)
    return [stopping.cut(tokenizer.decode(answer, skip_special_tokens=True)) for answer in answers]


def _pad_left(prompts: Sequence[Sequence[int]], filler: int) -> tuple[Tensor, Tensor]:
    length = max(map(len, prompts))
    gaps = [length - len(prompt) for prompt in prompts]
    input_ids = torch.tensor([[filler] * gap + list(prompt) for gap, prompt in zip(gaps, prompts, strict=True)])
    attention_mask = torch.tensor([[0] * gap + [1] * (length - gap) for gap in gaps])
    return input_ids, attention_mask
