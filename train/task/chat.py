"""A conversation as the model's own chat template writes it, and which characters of that are the assistant's.

A template with generation tags says itself what the assistant writes. For others the conversation is rendered up to
each turn of the assistant, with the prompt for it and with the turn: what the second has more is the turn. Both must be
the beginning of the whole conversation, or the model would learn at a place where it is never asked. Some templates
rewrite earlier turns, as those that drop the thoughts before the last question: there the last turn alone is learnt.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shearling.errors import ModelUnsupported, RecipeInvalid
from train.task.messages import Message

GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")

TODAY = datetime.date(2024, 7, 26)
"""What templates write that ask for the day, so that a row, and with it the split, does not depend on it. It is the one
that templates of Llama 3 name where they cannot ask."""

Span = tuple[int, int]
"""First character and the one behind the last."""


@dataclass(frozen=True)
class RenderedChat:
    """A conversation that ends with a turn of the assistant, as a text.

    Attributes:
        prompt: up to the last turn of the assistant.
        completion: what the assistant says there, without what ends the turn.
        tail: what follows.
        learnt: characters of the three together that are the assistant's, with what ends each turn.
        whole: whether every turn of the assistant is among them.
    """

    prompt: str
    completion: str
    tail: str
    learnt: tuple[Span, ...]
    whole: bool


class ChatRenderer:
    """The chat template of a tokenizer.

    Args:
        tokenizer: of the model.

    Raises:
        ModelUnsupported: it has no chat template, or cannot say which characters a token stands for.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not tokenizer.chat_template:
            raise ModelUnsupported(
                "the tokenizer of this model has no chat template",
                where="task.messages",
                remedy="Take an instruction-tuned model, put chat_template.jinja beside its tokenizer, or give "
                "'prompt' and 'completion' instead of 'messages'",
            )
        if not tokenizer.is_fast:
            raise ModelUnsupported(
                "conversations need a tokenizer that knows which characters a token stands for",
                where=type(tokenizer).__name__,
                remedy="Add its tokenizer.json, or give 'prompt' and 'completion' instead of 'messages'",
            )
        self._tokenizer = tokenizer
        ends = {str(token) for token in tokenizer.all_special_tokens}
        ends |= {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._ends = tuple(sorted(ends, key=len, reverse=True))

    @property
    def template_sha256(self) -> str:
        """Digest of the template, or of all where the tokenizer has several."""
        return hashlib.sha256(json.dumps(self._tokenizer.chat_template, sort_keys=True).encode()).hexdigest()

    def __call__(self, messages: Sequence[Message], tools: list[dict[str, Any]] | None, *, where: str) -> RenderedChat:
        """Render a conversation.

        Args:
            messages: the last of them the assistant's.
            tools: JSON schemas.
            where: section and row, for messages.

        Raises:
            RecipeInvalid: the template refuses the conversation, or does not say where an answer begins.
        """
        whole = self._render(messages, tools, where)
        last = len(messages) - 1
        prompt = self._render(messages[:last], tools, where, asks=True)
        if not whole.startswith(prompt):
            raise RecipeInvalid(
                "the chat template writes the prompt of the last answer otherwise once the answer follows, so that it "
                "cannot be said where the answer begins",
                where=where,
                remedy="Give the template generation tags, or give 'prompt' and 'completion' instead of 'messages'",
            )
        completion = self._without_end(whole[len(prompt) :])
        tail = whole[len(prompt) + len(completion) :]
        template = self._tokenizer.get_chat_template(None, tools)
        if GENERATION_TAG.search(template):
            return RenderedChat(prompt, completion, tail, self._tagged(messages, tools, where), whole=True)
        spans = [self._turn(messages, place, tools, whole, where) for place in _said(messages)]
        if None in spans:
            # What is rendered with the last turn is the whole, so that this one always has its place.
            return RenderedChat(prompt, completion, tail, ((len(prompt), len(whole.rstrip())),), whole=False)
        return RenderedChat(prompt, completion, tail, tuple(span for span in spans if span is not None), whole=True)

    def _turn(
        self, messages: Sequence[Message], place: int, tools: list[dict[str, Any]] | None, whole: str, where: str
    ) -> Span | None:
        """Where a turn stands in the whole; None where the prompt for it, or the turn, is not what stands there."""
        before = self._render(messages[:place], tools, where, asks=True)
        turn = self._render(messages[: place + 1], tools, where)
        if not (whole.startswith(turn) and turn.startswith(before)):
            return None
        return len(before), max(len(before), len(turn.rstrip()))

    def _tagged(self, messages: Sequence[Message], tools: list[dict[str, Any]] | None, where: str) -> tuple[Span, ...]:
        """What the template marks, joined where one token follows the other."""
        encoded = self._tokenizer.apply_chat_template(
            list(messages),
            tools=tools,
            strftime_now=TODAY.strftime,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            tokenizer_kwargs={"return_offsets_mapping": True},
        )
        spans: list[Span] = []
        tokens = token_spans(encoded["offset_mapping"])
        for is_learnt, (start, end) in zip(encoded["assistant_masks"], tokens, strict=True):
            if is_learnt and spans and spans[-1][1] >= start:
                spans[-1] = (spans[-1][0], end)
            elif is_learnt:
                spans.append((start, end))
        if not spans:
            raise RecipeInvalid(
                "the generation tags of the chat template mark nothing in this conversation",
                where=where,
                remedy="Correct the template, or leave the row out",
            )
        return tuple(spans)

    def _render(
        self, messages: Sequence[Message], tools: list[dict[str, Any]] | None, where: str, *, asks: bool = False
    ) -> str:
        from jinja2 import TemplateError

        try:
            rendered = self._tokenizer.apply_chat_template(
                list(messages),
                tools=tools,
                strftime_now=TODAY.strftime,
                tokenize=False,
                add_generation_prompt=asks,
            )
        except Exception as error:  # a template is code, and may raise anything
            said = str(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"
            raise RecipeInvalid(
                f"the chat template refuses this conversation: {said}",
                where=where,
                remedy="Change the row to what the model knows, or leave it out",
            ) from None
        return str(rendered)

    def _without_end(self, turn: str) -> str:
        """A turn without the white space and the special tokens that end it."""
        kept = turn.rstrip()
        while (end := next((token for token in self._ends if token and kept.endswith(token)), None)) is not None:
            kept = kept.removesuffix(end).rstrip()
        return kept


def token_spans(offsets: Sequence[Span]) -> list[Span]:
    """The characters that each token stands for, from the offsets that its tokenizer gives it: with the white space
    before them, which some trim off, so that a token of white space alone would stand for nothing.
    """
    spans, reached = [], 0
    for start, end in offsets:
        # Tokens of one character of several bytes all have its offsets.
        spans.append((min(start, reached), end))
        reached = max(reached, end)
    return spans


def _said(messages: Sequence[Message]) -> list[int]:
    return [place for place, message in enumerate(messages) if message["role"] == "assistant"]
