"""What the server and the process of a model say to each other: one line of JSON each way.

First `Loading`, which is answered by `Loaded` or an error of `shearling.errors`; then any number of `Command`. `Events`
come after those that are there, and after every step of the pipeline that brought some.
"""

from __future__ import annotations

from typing import Literal

import pydantic

from serve.http.limits import Limits
from serve.runtimes.deployment import Deployment
from serve.runtimes.runtime import RunOptions, RuntimeFacts
from shearling.strict_json import Document

FinishReason = Literal["stop", "length"]
TOO_MANY_TOKENS = "too_many_tokens"
"""Code of a refusal for the number of new tokens; all others are for the prompt."""


class Loading(Document):
    """The first line a process is given."""

    deployment: Deployment
    options: RunOptions
    limits: Limits


class Loaded(Document):
    """Its answer.

    Attributes:
        facts: what really runs.
        chats: whether its tokenizer has a chat template.
        lone: whether a text that nothing runs beside is decoded faster, see `serve.http.lone_decoder`.
    """

    facts: RuntimeFacts
    chats: bool
    lone: bool


class Turn(Document):
    """One message of a chat, as the template takes it."""

    role: str
    content: str


class Sampling(Document):
    """How tokens are chosen; see docs/http.md for the ranges.

    Attributes:
        temperature: 0 takes the most likely token.
        top_k: None is no limit.
        seed: always given; the server draws one where the client has none.
        repeatable: whether the client gave it, and may expect the same text again where nothing runs beside it.
        ignore_eos: go on to `max_new_tokens` past an end token.
    """

    temperature: float
    top_p: float
    top_k: int | None
    seed: int
    repeatable: bool
    frequency_penalty: float
    presence_penalty: float
    ignore_eos: bool


class TextJob(Document):
    """One text to be made.

    Attributes:
        id: of no other job of this process.
        prompt: text, token ids, or a chat.
        max_new_tokens: that were asked for; None leaves the number to the server.
        default_new_tokens: then, or as many of them as limits and context allow; None is all that they allow.
        stops: strings before which the text ends.
        streamed: whether pieces are wanted, or the whole text at the end.
    """

    id: int
    prompt: str | tuple[int, ...] | tuple[Turn, ...]
    max_new_tokens: int | None
    default_new_tokens: int | None = None
    sampling: Sampling
    stops: tuple[str, ...]
    streamed: bool


class Command(Document):
    """A line to the process; one of the two."""

    add: TextJob | None = None
    cancel: int | None = None


class Event(Document):
    """Something that happened to a job.

    Attributes:
        kind: `accepted` comes first, or `refused` alone; `started` when it has its place in the batch; `text` as often
            as there is some; `finished` or `failed` last.
        text: a piece, of `text` and `finished`.
        prompt_tokens: of `accepted`.
        new_tokens: so far, of `text` and `finished`, the end token included.
        message, code: of `refused` and `failed`.
    """

    job: int
    kind: Literal["accepted", "started", "text", "finished", "refused", "failed"]
    text: str = ""
    prompt_tokens: int = 0
    new_tokens: int = 0
    reason: FinishReason | None = None
    message: str = ""
    code: str | None = None

    @property
    def is_last(self) -> bool:
        """Whether no other event of this job follows."""
        return self.kind in ("finished", "refused", "failed")


class Events(Document):
    """A line from the process.

    Attributes:
        cache_usage: share of the allocated key-value cache that is in use.
        new_tokens: that the process has made since it began.
    """

    events: tuple[Event, ...]
    cache_usage: float = pydantic.Field(ge=0)
    new_tokens: int = pydantic.Field(ge=0)
