"""What a deployment is asked to do: how much, how often, and the prompts, random or from a trace of real ones.

Each block has its own prompt, the same for all, because OpenVINO GenAI caches prefixes: a repeated prompt would report
the first token of a cache hit. A trace that is shorter than the measuring repeats itself; so every prompt of a trace is
preceded by one random token.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydantic

from serve.runtimes.deployment import Deployment
from serve.runtimes.runtime import check_lengths
from serve.runtimes.tokenization import TextTokenizer
from shearling.errors import DocumentInvalid, UsageError
from shearling.strict_json import Document, describe_validation_error, parse_json

TRACE_BYTES = 16 * 2**20
DOCUMENT_BYTES = 256 * 2**20
"""Of what keeps the samples of a benchmark: larger ones are neither begun nor read."""
TOKEN_BYTES, ROW_TOKEN_BYTES, SAMPLE_BYTES = 50, 20, 4096
"""What a sample takes there at most: each token with its gap, each of another row of a batch, and everything else, what
loading reported included.
"""
OPTIONS = {
    "prompt_tokens": "--prompt-tokens",
    "new_tokens": "--max-new-tokens",
    "repeats": "--repeats",
    "warmup": "--warmup",
    "sessions": "--sessions",
    "batch": "--batch-size",
    "budget_s": "--budget",
}
"""What the numbers of a workload are called on the command line."""
MINIMUM_VOCABULARY = 256
"""Without a configuration any vocabulary has at least this many ids."""

Rows = tuple[tuple[int, ...], ...]
"""Token ids of a batch, [batch][length]."""


class TraceItem(Document):
    """One line of a trace: `{"prompt": "...", "new_tokens": 40}`.

    Attributes:
        prompt: a real text; goes to the model as it is, without a chat template.
        new_tokens: how long its answer is; None takes that of the workload.
    """

    prompt: str = pydantic.Field(min_length=1)
    new_tokens: int | None = pydantic.Field(default=None, ge=2)


class Workload(Document):
    """What each deployment is asked to do.

    Attributes:
        prompt_tokens: random token ids, drawn anew for every block; with a trace, its own prompts instead.
        new_tokens: decoded greedily, end tokens ignored.
        repeats: measured blocks per session.
        warmup: blocks of full length that are thrown away, per session.
        sessions: how often all processes are started anew; a process can be lucky or unlucky in its memory for life.
        batch: prompts that are decoded together.
        seed: of the prompts and of the bootstrap.
        trace: real prompts, one for each block in turn.
        separate_phases: ask for the first token in a call of its own, so that each phase knows its own waits.
        turn_s: let all generate at once, and the next one go on after so many seconds, see `serve.bench.turns`; None
            lets one generate after the other.
        budget_s: stop after so many seconds, loading included.
    """

    prompt_tokens: int = pydantic.Field(ge=1)
    new_tokens: int = pydantic.Field(ge=2)
    repeats: int = pydantic.Field(ge=1)
    warmup: int = pydantic.Field(ge=0)
    sessions: int = pydantic.Field(default=1, ge=1)
    batch: int = pydantic.Field(default=1, ge=1)
    seed: int = 0
    trace: tuple[TraceItem, ...] = ()
    separate_phases: bool = False
    turn_s: float | None = pydantic.Field(default=None, gt=0)
    budget_s: float | None = pydantic.Field(default=None, gt=0, allow_inf_nan=False)

    def new_tokens_in_words(self, blocks: int) -> str:
        """How many are made of a prompt of so many blocks: a number, or the fewest and the most."""
        counts = [item.new_tokens or self.new_tokens for item in self.trace[:blocks]] or [self.new_tokens]
        return f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"

    def is_decided_by(self, name: str) -> bool:
        """Whether a field says anything of the work: a trace brings its own prompts, and may bring their lengths."""
        if name == "prompt_tokens":
            return not self.trace
        return name != "new_tokens" or not self.trace or any(item.new_tokens is None for item in self.trace)

    def trace_in_words(self, blocks: int) -> str:
        """How many prompts of the trace so many blocks reach."""
        reached = min(blocks, len(self.trace))
        shown = f"{reached}" if reached == len(self.trace) else f"{reached} of the {len(self.trace)}"
        return f"{shown} prompts of a trace"


def make_workload(
    prompt_tokens: int,
    new_tokens: int,
    *,
    repeats: int = 6,
    warmup: int = 1,
    sessions: int = 1,
    batch: int = 1,
    seed: int = 0,
    trace: Path | None = None,
    separate_phases: bool = False,
    turn_s: float | None = None,
    budget_s: float | None = None,
) -> Workload:
    """A workload from what a user asked for; see `Workload`.

    Raises:
        UsageError: names every number that is out of range, or a batch of prompts of different lengths.
        ArtefactError: see `read_trace`.
    """
    items = () if trace is None else read_trace(trace)
    if items and batch > 1:
        raise UsageError(
            "the prompts of a trace have different lengths: they make no batch",
            remedy="Leave --batch-size out, or give --prompt-tokens",
        )
    try:
        return Workload(
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            repeats=repeats,
            warmup=warmup,
            sessions=sessions,
            batch=batch,
            seed=seed,
            trace=items,
            separate_phases=separate_phases,
            turn_s=turn_s,
            budget_s=budget_s,
        )
    except pydantic.ValidationError as error:
        wrong = {str(item["loc"][0]) for item in error.errors(include_url=False) if item["loc"]}
        raise UsageError(
            f"this workload cannot be measured: {describe_validation_error(error, names=OPTIONS)}",
            remedy="A decode needs 2 new tokens, the first and one after it"
            if wrong == {"new_tokens"}
            else f"Give another {' and '.join(OPTIONS.get(name, name) for name in sorted(wrong))}",
        ) from None


def check_document_size(workload: Workload, *, deployments: int) -> None:
    """Refuse to measure what could not be read again.

    Args:
        workload: without a budget: all its blocks will be measured.
        deployments: that take part in each block.

    Raises:
        UsageError: the samples would take more than `DOCUMENT_BYTES`.
    """
    blocks = workload.sessions * workload.repeats
    lengths = [item.new_tokens or workload.new_tokens for item in workload.trace] or [workload.new_tokens]
    rounds, rest = divmod(blocks, len(lengths))
    new_tokens = rounds * sum(lengths) + sum(lengths[:rest])
    size_bytes = len(json.dumps(workload.model_dump(mode="json"), indent=2))
    token_bytes = TOKEN_BYTES + (workload.batch - 1) * ROW_TOKEN_BYTES
    size_bytes += deployments * (blocks * SAMPLE_BYTES + new_tokens * token_bytes)
    if size_bytes > DOCUMENT_BYTES:
        raise UsageError(
            f"{deployments * blocks} samples of {workload.new_tokens_in_words(blocks)} new tokens take up to "
            f"{size_bytes >> 20} MiB, and at most {DOCUMENT_BYTES >> 20} are written",
            remedy="Lower --repeats, --sessions or --max-new-tokens, or leave --output out",
        )


def read_trace(path: Path) -> tuple[TraceItem, ...]:
    """Read a JSONL trace strictly; blank lines are skipped.

    Raises:
        ArtefactMissing: no such file.
        DocumentInvalid: too large, or a line that is no prompt; names the line.
        UsageError: there is no prompt in it.
    """
    if not path.is_file():
        raise UsageError(
            "no such trace", where=path, remedy='Give JSON lines such as {"prompt": "...", "new_tokens": 40}'
        )
    if path.stat().st_size > TRACE_BYTES:
        raise DocumentInvalid(f"{path.stat().st_size} bytes; at most {TRACE_BYTES} are accepted", where=path)
    items = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            items.append(TraceItem.model_validate(parse_json(line, where=where)))
        except pydantic.ValidationError as error:
            raise DocumentInvalid(describe_validation_error(error), where=where) from None
    if not items:
        raise UsageError(
            "the trace is empty", where=path, remedy='Give JSON lines such as {"prompt": "...", "new_tokens": 40}'
        )
    return tuple(items)


class Prompts:
    """Draws the prompt of each block, for all deployments alike.

    Args:
        deployments: what will be asked; a trace is encoded by the tokenizer of each.
        workload: see `Workload`.

    Raises:
        UsageError: some prompt and its answer exceed a context.
        ArtefactMissing: a trace was given, and a deployment has no tokenizer.json.
    """

    def __init__(self, deployments: Sequence[Deployment], workload: Workload) -> None:
        self._workload = workload
        self._vocabulary = min(deployment.vocabulary or MINIMUM_VOCABULARY for deployment in deployments)
        self._generator = np.random.default_rng(workload.seed)
        self._encoded = [_encode_trace(deployment, workload.trace) for deployment in deployments]
        self._drawn = 0
        for deployment, encoded in zip(deployments, self._encoded, strict=True):
            for place, token_ids in enumerate(encoded):
                check_lengths(1 + len(token_ids), self._new_tokens(place), deployment=deployment)
            if not encoded:
                check_lengths(workload.prompt_tokens, workload.new_tokens, deployment=deployment)

    def draw(self) -> tuple[list[Rows], int]:
        """The prompt of the next block for each deployment, and the number of tokens to generate."""
        if not self._workload.trace:
            rows = tuple(self._random(self._workload.prompt_tokens) for _ in range(self._workload.batch))
            return [rows] * len(self._encoded), self._workload.new_tokens
        place = self._drawn % len(self._workload.trace)
        self._drawn += 1
        stranger = self._random(1)
        return [(stranger + encoded[place],) for encoded in self._encoded], self._new_tokens(place)

    def longest(self) -> tuple[list[Rows], int]:
        """A prompt of full length for the warm-up."""
        if not self._workload.trace:
            return self.draw()
        place = max(range(len(self._workload.trace)), key=lambda item: len(self._encoded[0][item]))
        stranger = self._random(1)
        return [(stranger + encoded[place],) for encoded in self._encoded], self._new_tokens(place)

    def _new_tokens(self, place: int) -> int:
        return self._workload.trace[place].new_tokens or self._workload.new_tokens

    def _random(self, length: int) -> tuple[int, ...]:
        return tuple(int(token) for token in self._generator.integers(0, self._vocabulary, size=length))


def _encode_trace(deployment: Deployment, trace: Sequence[TraceItem]) -> list[tuple[int, ...]]:
    if not trace:
        return []
    tokenizer = TextTokenizer(deployment.directory)
    return [tuple(tokenizer.encode(item.prompt, chat=False)) for item in trace]
