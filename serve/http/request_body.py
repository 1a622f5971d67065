"""The bodies of requests: what is taken, what is taken and changes nothing, and what is refused.

A field that is not listed here is refused by name. Of those that ask for something this server cannot do, the value
that asks for nothing is taken, since clients send it by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import pydantic

from serve.http.limits import CHOICES, MESSAGES, STOPS
from serve.http.protocol import Sampling, Turn
from shearling.strict_json import Document

SEED_MODULUS = 2**32
COMPLETION_TOKENS = 16
"""Of a completion that names no number, as at OpenAI's."""


class TextPart(Document):
    """A piece of a message that comes in pieces."""

    type: Literal["text"]
    text: str


class Message(Document):
    """One message of a chat; `developer` is OpenAI's newer word for `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[tuple[TextPart, ...], pydantic.Field(fail_fast=True)]
    name: str | None = None
    refusal: None = None
    audio: None = None
    annotations: tuple[()] | None = None
    tool_calls: tuple[()] | None = None
    function_call: None = None

    def turn(self) -> Turn:
        """As the template takes it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Turn(role="system" if self.role == "developer" else self.role, content=text)


class StreamOptions(Document):
    """Of a stream."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class PlainText(Document):
    """The one format of a response there is."""

    type: Literal["text"]


def _as_stops(value: Any) -> Any:
    """A single one as the only one of several; lists as tuples, which strict validation asks for."""
    return value if value is None else tuple(value) if isinstance(value, list) else (value,)


Stop = Annotated[str, pydantic.Field(min_length=1, max_length=1000)]
Stops = Annotated[
    Annotated[tuple[Stop, ...], pydantic.Field(max_length=STOPS, fail_fast=True)] | None,
    pydantic.BeforeValidator(_as_stops),
]
Probability = Annotated[float, pydantic.Field(ge=0, le=1)]
Penalty = Annotated[float, pydantic.Field(ge=-2, le=2)]
Count = Annotated[int, pydantic.Field(ge=1, le=2**31 - 1)]
Seed = Annotated[int, pydantic.Field(ge=-(2**63), le=2**63 - 1)]


class GenerationBody(Document):
    """What both endpoints take.

    Attributes:
        default_new_tokens: see `TextJob`.
        top_k: not OpenAI's; at most so many tokens to choose from.
        ignore_eos: not OpenAI's; go on past an end token, to measure.
        user: this and what follows is taken and changes nothing.
    """

    default_new_tokens: ClassVar[int | None] = None

    model: str
    max_tokens: Count | None = None
    temperature: Annotated[float, pydantic.Field(ge=0, le=2)] | None = None
    top_p: Probability | None = None
    top_k: Count | None = None
    n: Annotated[int, pydantic.Field(ge=1, le=CHOICES)] | None = None
    stop: Stops = None
    seed: Seed | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None
    user: str | None = None
    logit_bias: Annotated[dict[str, float], pydantic.Field(max_length=0)] | None = None

    @pydantic.model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> GenerationBody:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options are of a stream: give stream as well")
        return self

    @property
    def choices(self) -> int:
        """Texts for each prompt."""
        return self.n or 1

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(self, *, seed: int) -> Sampling:
        """How tokens are chosen.

        Args:
            seed: of this text; taken modulo 2^32.
        """
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=self.top_k,
            seed=seed % SEED_MODULUS,
            repeatable=self.seed is not None,
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            ignore_eos=bool(self.ignore_eos),
        )


def _at_least_one(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    # A `min_length` would complain of wrong messages a second time, as of none.
    if not messages:
        raise ValueError("a chat has at least one message")
    return messages


class ChatBody(GenerationBody):
    """Of `/v1/chat/completions`."""

    messages: Annotated[
        tuple[Message, ...],
        pydantic.Field(max_length=MESSAGES, fail_fast=True),
        pydantic.AfterValidator(_at_least_one),
    ]
    max_completion_tokens: Count | None = None
    logprobs: Literal[False] | None = None
    response_format: PlainText | None = None
    modalities: tuple[Literal["text"]] | None = None
    tools: tuple[()] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    metadata: dict[str, str] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @pydantic.model_validator(mode="after")
    def _one_number_of_tokens(self) -> ChatBody:
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens disagree: give max_completion_tokens alone")
        return self

    @property
    def prompts(self) -> Sequence[tuple[Turn, ...]]:
        """The one prompt of a chat."""
        return [tuple(message.turn() for message in self.messages)]

    @property
    def max_new_tokens(self) -> int | None:
        """See `TextJob`."""
        return self.max_completion_tokens or self.max_tokens


def _as_prompts(value: Any) -> Any:
    """OpenAI's four forms as one: a text, texts, token ids, lists of token ids."""
    if isinstance(value, str):
        return (value,)
    items = value if isinstance(value, list) else []
    if items and all(isinstance(item, int) and not isinstance(item, bool) for item in items):
        return (tuple(items),)
    if not items or not all(isinstance(item, (str, list)) and item for item in items):
        raise ValueError("a prompt is a text, a list of texts, a list of token ids, or a list of such lists")
    return tuple(tuple(item) if isinstance(item, list) else item for item in items)


TokenId = Annotated[int, pydantic.Field(ge=0, le=2**31 - 1)]


class CompletionBody(GenerationBody):
    """Of `/v1/completions`."""

    default_new_tokens: ClassVar[int | None] = COMPLETION_TOKENS

    prompt: Annotated[
        tuple[str | Annotated[tuple[TokenId, ...], pydantic.Field(fail_fast=True)], ...],
        pydantic.Field(min_length=1, max_length=CHOICES, fail_fast=True),
        pydantic.BeforeValidator(_as_prompts),
    ]
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    logprobs: None = None
    suffix: None = None

    @pydantic.model_validator(mode="after")
    def _not_too_many(self) -> CompletionBody:
        if len(self.prompt) * self.choices > CHOICES:
            raise ValueError(f"{len(self.prompt)} prompts times n = {self.choices} are more than {CHOICES} texts")
        return self

    @property
    def prompts(self) -> Sequence[str | tuple[int, ...]]:
        """One or several."""
        return self.prompt

    @property
    def max_new_tokens(self) -> int | None:
        """See `TextJob`."""
        return self.max_tokens
