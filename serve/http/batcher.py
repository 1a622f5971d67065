"""Texts of many requests at once, through GenAI's continuous batching: what the process of a model does.

Nothing here waits. `add` and `cancel` take effect with the next `step`, and each step tells what it brought. A text
that nothing runs beside may be decoded by another pipeline, which is faster for one; what comes meanwhile is batched,
and the two take turns.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from serve.http.limits import Limits
from serve.http.lone_decoder import LoneDecoder
from serve.http.protocol import TOO_MANY_TOKENS, Event, FinishReason, Sampling, TextJob, Turn
from serve.http.stop_strings import StopFilter
from serve.http.token_source import BatchedTokens, LoneTokens, TokenSource
from serve.runtimes.deployment import Deployment
from serve.runtimes.openvino_decoding import greedy
from serve.runtimes.tokenization import Decoder, TextStream, TextTokenizer, joined_behind, told_by_minja
from shearling.errors import ArtefactMissing, ModelUnsupported
from shearling.kernel.loading.prompt_encoding import encode_prompt_in_genai
from shearling.kernel.runtime_refusal import last_line

if TYPE_CHECKING:
    from openvino_genai import ContinuousBatchingPipeline, GenerationConfig

GREEDY_TEMPERATURE, GREEDY_SHARE = 0.01, 1e-6
"""Below these the most likely token is taken: logits divided by less leave the range of float32 before they choose
anything else, and a smaller `top_p` keeps no second token, and may be 0 in float32, which GenAI refuses.
"""
JOINED = 4
"""Last tokens of a prompt that a text is joined to: as many as the bytes of a character."""
STREAM_S = 0.04
"""Between two pieces of a stream: more of them nobody sees, and each takes time of server and client that the model
lacks where they share processors. All streams have theirs after the same step, so that both wake once for them.
"""


@dataclass
class _Text:
    """A job under way.

    Attributes:
        ids: of the prompt.
        ends: tokens that end it.
        stream: turns tokens into `pieces`, through `stops`; None where the whole text is decoded at the end.
        pieces: readable text that was not told yet.
        kept: tokens of the text that were not decoded yet.
        source: of its tokens, once it has a place.
        told: whether a piece of it was.
    """

    job: TextJob
    ids: list[int]
    max_new_tokens: int
    config: GenerationConfig
    ends: frozenset[int]
    stops: StopFilter
    stream: TextStream | None = None
    pieces: list[str] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    source: TokenSource = field(init=False)
    new_tokens: int = 0
    reason: FinishReason | None = None
    told: bool = False

    @property
    def continued(self) -> list[int]:
        """Tokens of the prompt that the text goes on from; a chat's answer is a text of its own."""
        return [] if isinstance(self.job.prompt[0], Turn) else self.ids[-JOINED:]

    def let_through(self, piece: str) -> None:
        """Take text of the stream."""
        self.pieces.append(self.stops.push(piece))

    def read(self, decoder: Decoder) -> None:
        """Decode what is kept."""
        if self.stream is None:
            self.pieces.append(joined_behind(decoder, self.continued, self.kept))
        elif self.kept:
            self.stream.push(*self.kept)
        self.kept.clear()


class _PromptRefused(Exception):
    """A prompt that this model cannot take."""

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


class Batcher:
    """Owns the pipeline of a model.

    Args:
        pipeline: nobody else adds to it or steps it.
        deployment: what it was loaded from.
        limits: of tokens, and of texts decoded together.
        lone: decodes a text that nothing runs beside; None where that would not be faster.
        clock: in seconds.

    Attributes:
        new_tokens: made so far, those of texts that were cancelled included.
    """

    def __init__(
        self,
        pipeline: ContinuousBatchingPipeline,
        deployment: Deployment,
        limits: Limits,
        *,
        lone: LoneDecoder | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._pipeline = pipeline
        self._lone = lone
        self._tokenizer = pipeline.get_tokenizer()
        self._decoder = _decoder(deployment.directory) or self._tokenizer
        self._deployment = deployment
        self._limits = limits
        self._end_ids = frozenset(deployment.end_ids)
        self._waiting: deque[_Text] = deque()
        self._flying: dict[int, _Text] = {}
        self._due_s = -math.inf
        self.new_tokens = 0

    @property
    def busy(self) -> bool:
        """Whether a step has something to do."""
        # What was cancelled keeps its cache until the next step.
        return bool(self._waiting or self._flying or self._pipeline.has_non_finished_requests())

    @property
    def chats(self) -> bool:
        """Whether the tokenizer has a chat template."""
        return bool(self._tokenizer.get_original_chat_template())

    @property
    def decodes_alone(self) -> bool:
        """Whether a text that nothing runs beside is decoded faster."""
        return self._lone is not None

    @property
    def cache_usage(self) -> float:
        """Share of the allocated key-value cache in use, 0 to 1."""
        return float(self._pipeline.get_metrics().cache_usage) / 100

    def add(self, job: TextJob) -> Event:
        """Take a job, or say why not."""
        try:
            ids = self._encode(job.prompt)
            max_new_tokens = self._room(job, len(ids))
            config = self._configuration(job.sampling, max_new_tokens)
            config.validate()
            ends = self._ends(job)
        except _PromptRefused as refused:
            return Event(job=job.id, kind="refused", message=str(refused), code=refused.code)
        except (RuntimeError, ValueError) as error:
            # What the libraries object to must not end the process of everybody.
            return Event(job=job.id, kind="refused", message=f"OpenVINO GenAI refuses it: {last_line(error)}")
        text = _Text(job, ids, max_new_tokens, config, ends, StopFilter(job.stops))
        if job.streamed or job.stops:
            text.stream = TextStream(self._decoder, text.let_through, after=text.continued)
        self._waiting.append(text)
        return Event(job=job.id, kind="accepted", prompt_tokens=len(ids))

    def cancel(self, job_id: int) -> None:
        """Forget a job, unless it has ended already."""
        self._waiting = deque(text for text in self._waiting if text.job.id != job_id)
        text = self._flying.pop(job_id, None)
        if text is not None:
            self.new_tokens += text.source.close()

    def step(self) -> Iterator[Event]:
        """One token for every text that has a place; texts that wait take the places that are free."""
        while self._waiting and len(self._flying) < self._limits.concurrency:
            yield self._start(self._waiting.popleft())
        if self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        now_s = self._clock()
        due = now_s >= self._due_s
        if due:
            self._due_s = now_s + STREAM_S
        for text in list(self._flying.values()):
            yield from self._collect(text, due=due)

    def _start(self, text: _Text) -> Event:
        import openvino

        # The two pipelines round sums differently, so a seed that is to give the same text again stays with one. There
        # the number of rows rounds them differently as well: it does so only where nothing runs beside it.
        tied = text.config.do_sample and text.job.sampling.repeatable
        if self._lone is not None and not tied and not self._flying and not self._waiting:
            text.source = LoneTokens(self._lone.decode(text.ids, text.config), most=text.max_new_tokens)
        else:
            ids = openvino.Tensor(np.asarray([text.ids], dtype=np.int64))
            text.source = BatchedTokens(self._pipeline.add_request(text.job.id, ids, text.config))
        self._flying[text.job.id] = text
        return Event(job=text.job.id, kind="started")

    def _configuration(self, sampling: Sampling, max_new_tokens: int) -> GenerationConfig:
        config = greedy(max_new_tokens, frozenset() if sampling.ignore_eos else self._end_ids)
        if sampling.temperature >= GREEDY_TEMPERATURE and sampling.top_p >= GREEDY_SHARE:
            _sample(config, sampling)
        config.frequency_penalty = sampling.frequency_penalty
        config.presence_penalty = sampling.presence_penalty
        return config

    def _collect(self, text: _Text, *, due: bool) -> Iterator[Event]:
        told_now = text.job.streamed and (due or not text.told)
        for token in text.source.read(wanted=told_now or bool(text.job.stops)):
            self._take(text, token)
            if text.reason is not None:
                break
        if text.reason is None and text.source.ended and not text.source.failed:
            text.reason = "length" if text.new_tokens >= text.max_new_tokens else "stop"
        if text.reason is not None:
            self._leave(text)
            yield self._finish(text)
        elif text.source.failed:
            self._leave(text)
            message = "the key-value cache has no room left: ask for fewer tokens, or try again later"
            yield Event(job=text.job.id, kind="failed", message=message, code="out_of_memory")
        elif told_now and (piece := self._readable(text)):
            text.told = True
            yield Event(job=text.job.id, kind="text", text=piece, new_tokens=text.new_tokens)

    def _leave(self, text: _Text) -> None:
        text.source.close()
        del self._flying[text.job.id]

    def _take(self, text: _Text, token: int) -> None:
        text.new_tokens += 1
        self.new_tokens += 1
        if token in text.ends:
            text.reason = "stop"
            return
        text.kept.append(token)
        if text.job.stops:
            text.read(self._decoder)
        if text.stops.stopped:
            text.reason = "stop"

    def _finish(self, text: _Text) -> Event:
        text.read(self._decoder)
        if text.stream is not None:
            text.stream.finish()
            text.pieces.append(text.stops.finish())
        if text.stops.stopped:
            # The last bytes can complete a stop string, too.
            text.reason = "stop"
        return Event(
            job=text.job.id,
            kind="finished",
            text="".join(text.pieces),
            new_tokens=text.new_tokens,
            reason=text.reason,
        )

    def _readable(self, text: _Text) -> str:
        text.read(self._decoder)
        piece = "".join(text.pieces)
        text.pieces.clear()
        return piece

    def _encode(self, prompt: str | tuple[int, ...] | tuple[Turn, ...]) -> list[int]:
        """Token ids of a prompt.

        Raises:
            _PromptRefused: no template, one that refuses these messages, or ids that the model does not know.
        """
        if isinstance(prompt, str):
            return encode_prompt_in_genai(prompt, self._tokenizer)
        if isinstance(prompt[0], Turn):
            if not self.chats:
                raise _PromptRefused("this model has no chat template: use /v1/completions", "no_chat_template")
            turns: list[Any] = [turn.model_dump() for turn in prompt if isinstance(turn, Turn)]
            try:
                text = self._tokenizer.apply_chat_template(turns, add_generation_prompt=True)
            except RuntimeError as error:
                raise _PromptRefused(f"the chat template refuses these messages: {told_by_minja(error)}") from error
            return self._ids(text)
        ids = [token for token in prompt if isinstance(token, int)]
        vocabulary = self._deployment.vocabulary
        if vocabulary is None or min(ids) < 0 or max(ids) >= vocabulary:
            raise _PromptRefused(
                f"token ids are 0 to {vocabulary - 1}" if vocabulary else "this model takes text alone"
            )
        return ids

    def _ends(self, job: TextJob) -> frozenset[int]:
        """The model's own, and every stop string that is a special token, which no text shows."""
        own = frozenset[int]() if job.sampling.ignore_eos else self._end_ids
        encoded = {stop: self._ids(stop) for stop in job.stops}
        return own | {ids[0] for stop, ids in encoded.items() if len(ids) == 1 and self._is_special(stop, ids)}

    def _is_special(self, stop: str, ids: list[int]) -> bool:
        # Twice, since the first space of a text may be left out as well.
        if self._decoder.decode(ids * 2):
            return False
        # What the vocabulary lacks is the token of what is unknown, which no text shows either.
        return bool(self._tokenizer.decode(ids, skip_special_tokens=False) == stop)

    def _ids(self, text: str) -> list[int]:
        data = self._tokenizer.encode(text, add_special_tokens=False).input_ids.data
        return [int(token) for token in data[0]]

    def _room(self, job: TextJob, prompt_tokens: int) -> int:
        """How many tokens are to be made.

        Raises:
            _PromptRefused: fewer than 1, or more than limits and context allow.
        """
        limits, context = self._limits, self._deployment.context_tokens
        if prompt_tokens < 1:
            raise _PromptRefused("the prompt is empty")
        if limits.prompt_tokens is not None and prompt_tokens > limits.prompt_tokens:
            raise _PromptRefused(
                f"the prompt has {prompt_tokens} tokens, and at most {limits.prompt_tokens} are taken here",
                "context_length_exceeded",
            )
        room = limits.new_tokens if context is None else min(limits.new_tokens, context - prompt_tokens)
        wanted = job.max_new_tokens or max(1, min(job.default_new_tokens or room, room))
        if wanted > limits.new_tokens:
            raise _PromptRefused(f"at most {limits.new_tokens} new tokens are made here, not {wanted}", TOO_MANY_TOKENS)
        if wanted > room:
            raise _PromptRefused(
                f"the context holds {context} tokens: {prompt_tokens} of the prompt and {wanted} new ones do not fit",
                "context_length_exceeded",
            )
        return wanted


def _decoder(directory: Path) -> Decoder | None:
    """One that turns some tokens into text within microseconds; the pipeline's own starts an inference each time.

    None where there is none. Neither takes spaces before punctuation away, whatever the tokenizer's configuration says:
    pieces of a stream would show other spaces than the whole text, and code would break.
    """
    try:
        return TextTokenizer(directory)
    except (ArtefactMissing, ModelUnsupported):
        return None


def _sample(config: GenerationConfig, sampling: Sampling) -> None:
    config.do_sample = True
    config.temperature = sampling.temperature
    config.top_p = sampling.top_p
    if sampling.top_k is not None:
        config.top_k = sampling.top_k
    config.rng_seed = sampling.seed
