"""What every runtime can do, and the values that describe one generation.

A runtime is a class in a file of its own in this folder, or in another package, and a record in
`shearling.registry.runtimes`. All of them decode greedily and take token ids, so that all can be given the same work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import pydantic

from serve.runtimes.deployment import Deployment
from shearling.errors import UsageError
from shearling.registry.runtimes import RUNTIMES
from shearling.strict_json import Document

Precision = Literal["default", "fp32", "bf16"]
Hint = Literal["latency", "throughput"]
OnText = Callable[[str], None]


class RunOptions(Document):
    """How a deployment is to be run.

    Attributes:
        device: upper case; each runtime has its own, see `shearling.registry.runtimes`.
        precision: of the arithmetic; `default` is what the runtime does when nobody asks, and for packed models fp32
            but in products of integers, whose activations are rounded.
        threads: None leaves the number to the runtime; a measuring process is pinned to so many CPUs.
        hint: OpenVINO's PERFORMANCE_HINT; None leaves it at the device's default.
        huge_pages: move the memory of a measuring process into huge pages, or let none of it lie there; see
            `serve.visitor.huge_pages`.
        genai: measure OpenVINO through GenAI, which needs the tokenizer; without, the IR alone is measured.
    """

    device: str = "CPU"
    precision: Precision = "default"
    threads: int | None = pydantic.Field(default=None, ge=1)
    hint: Hint | None = None
    huge_pages: bool = True
    genai: bool = True


class RuntimeFacts(Document):
    """What really runs, as the runtime itself answers.

    Attributes:
        runtime: its name and version.
        provider: the device or execution provider in use.
        precision: of the arithmetic, as executed: fp32, bf16, fp16 where it is one of these; packed products may round
            their activations beside it.
        settings: everything else that decides speed, in the runtime's own words.
        timing_source: where the timings come from.
    """

    runtime: str
    provider: str
    precision: str
    settings: dict[str, str]
    timing_source: str


@dataclass(frozen=True)
class Decoding:
    """What is to be made of a prompt.

    Attributes:
        max_new_tokens: at least 1.
        end_ids: tokens that end it; empty computes all `max_new_tokens`.
        on_text: called with each piece of text as it becomes readable.
    """

    max_new_tokens: int
    end_ids: frozenset[int] = frozenset()
    on_text: OnText | None = None


class Generation(Document):
    """One greedy generation.

    Attributes:
        token_ids: new tokens, without an end token; of the first row of a batch.
        started_s: when the clock of these times began; of `time.perf_counter`.
        ttft_s: from the call to the first token.
        gaps_s: time between successive tokens, one fewer than were computed.
        total_s: of the whole call.
        other_rows: tokens of the rows behind the first; none where the runtime does not tell them.
    """

    token_ids: tuple[int, ...]
    started_s: float
    ttft_s: float
    gaps_s: tuple[float, ...]
    total_s: float
    other_rows: tuple[tuple[int, ...], ...] = ()

    @property
    def tpot_s(self) -> float | None:
        """Mean time per output token after the first; None for a single token."""
        return sum(self.gaps_s) / len(self.gaps_s) if self.gaps_s else None

    @property
    def tokens_per_s(self) -> float | None:
        """Decode speed: tokens after the first, per second."""
        return 1 / self.tpot_s if self.tpot_s else None


class Runtime(Protocol):
    """A loaded model.

    A class that fulfils this is called with a `Deployment` and `RunOptions`, whose package and device have been
    checked, and loads the model. It raises a class of `shearling.errors` where it cannot do what the options ask for,
    rather than do something else. `serve.runtimes.tokenization.TokenizedRuntime` is the half of it that is text, for
    models with a tokenizer.json.
    """

    facts: RuntimeFacts

    def has_chat_template(self) -> bool:
        """Whether `encode` can format a chat turn."""

    def encode(self, prompt: str, *, chat: bool) -> list[int]:
        """Token ids of a prompt, inside the chat template if `chat`."""

    def generate(self, rows: Sequence[Sequence[int]], work: Decoding) -> Generation:
        """Decode prompts greedily, together.

        Args:
            rows: token ids, [batch][length], all of one length, at least 1. A runtime that takes one prompt at a time
                refuses more through `only_row`.
            work: how far. End tokens and text are asked for with a single row only.

        Raises:
            UsageError: more rows, or more tokens, than the runtime takes.
        """

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of tokens, special ones left out."""

    def close(self) -> None:
        """Give memory and threads back."""


def load_runtime(deployment: Deployment, options: RunOptions) -> Runtime:
    """Load a deployment with the runtime of its format; check the device with `serve.runtimes.device` before.

    Raises:
        ArtefactError: the runtime cannot read the files.
        DeviceUnavailable: the runtime took another device or precision than was asked for.
    """
    runtime: Callable[[Deployment, RunOptions], Runtime] = RUNTIMES.get(deployment.format).load()
    return runtime(deployment, options)


def only_row(rows: Sequence[Sequence[int]], *, deployment: Deployment) -> Sequence[int]:
    """The prompt of a runtime that takes one at a time.

    Raises:
        UsageError: there are several.
    """
    if len(rows) != 1:
        title = RUNTIMES.get(deployment.format).title
        raise UsageError(
            f"{title} decodes one prompt at a time, not {len(rows)}",
            where=deployment.label,
            remedy="Use --batch-size 1",
        )
    return rows[0]


def check_lengths(prompt_tokens: int, new_tokens: int, *, deployment: Deployment) -> None:
    """Refuse work that the model cannot do.

    Raises:
        UsageError: no prompt, no token to generate, or together more than the context holds.
    """
    where = deployment.directory
    if prompt_tokens < 1:
        raise UsageError(
            "the prompt is empty: generation needs at least one token", where=where, remedy="Give a prompt"
        )
    if new_tokens < 1:
        raise UsageError(f"{new_tokens} new tokens were asked for", where=where, remedy="Ask for at least 1")
    context = deployment.context_tokens
    if context is None or prompt_tokens + new_tokens <= context:
        return
    room = context - prompt_tokens
    remedy = f"Ask for at most {room} new tokens" if room > 0 else "Shorten the prompt"
    raise UsageError(
        f"{prompt_tokens} prompt tokens and {new_tokens} new ones exceed the context of {context}",
        where=where,
        remedy=remedy,
    )
