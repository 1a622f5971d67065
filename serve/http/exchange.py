"""One request, from its checked body to its answer."""

from __future__ import annotations

import asyncio
import json
import random
import time
import uuid
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any

from serve.http.answer_form import AnswerForm
from serve.http.metrics import ServerMetrics
from serve.http.protocol import TOO_MANY_TOKENS, Event, TextJob
from serve.http.refusal import Refusal, took_too_long
from serve.http.request_body import SEED_MODULUS, ChatBody, CompletionBody
from serve.http.served_model import Flight, ServedModel

DONE = b"data: [DONE]\n\n"
LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\u0085\u2028\u2029"}
"""JSON may hold them as they are; clients that split lines as `str.splitlines` does would break an event there."""


class Exchange:
    """Use once, as `whole` or as `stream`.

    Args:
        model: that is asked.
        body: what for.
        form: how the answer is written.
        metrics: where it is counted.
        timeout_s: from now to the end of the answer.
    """

    def __init__(
        self,
        model: ServedModel,
        body: ChatBody | CompletionBody,
        form: AnswerForm,
        *,
        metrics: ServerMetrics,
        timeout_s: float,
    ) -> None:
        self._model = model
        self._body = body
        self._form = form
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._started_s = asyncio.get_running_loop().time()
        self._head = {
            "id": f"{form.id_prefix}-{uuid.uuid4().hex}",
            "object": form.chunk if body.stream else form.whole,
            "created": int(time.time()),
            "model": model.name,
            "system_fingerprint": model.fingerprint,
        }
        self._jobs = self._make_jobs()
        self._index = {job.id: index for index, job in enumerate(self._jobs)}
        self._prompt_tokens: dict[int, int] = {}
        self._new_tokens = dict.fromkeys(self._index, 0)
        self._told_first = False

    async def whole(self) -> dict[str, Any]:
        """The answer as one object.

        Raises:
            Refusal: this request is not answered.
        """
        ends: dict[int, Event] = {}
        with self._model.run(self._jobs) as flight:
            while not flight.ended:
                for event in await self._some(flight):
                    if event.is_last:
                        ends[event.job] = event
        choices = [
            self._form.choice(index, ends[job_id].text, ends[job_id].reason) for job_id, index in self._index.items()
        ]
        return {**self._head, "choices": choices, "usage": self._usage()}

    async def stream(self) -> AsyncIterator[bytes]:
        """Server-sent events; the first comes when the request is accepted, and none before.

        Raises:
            Refusal: this request is not answered; only before the first event.
        """
        with self._model.run(self._jobs) as flight:
            early = await self._until_accepted(flight)
            openings = [self._form.opening(index) for index in self._index.values()]
            yield b"".join(self._chunk([opening]) for opening in openings if opening is not None)
            try:
                if early:
                    yield self._told(early)
                while not flight.ended:
                    if told := self._told(await self._some(flight)):
                        yield told
            except Refusal as refusal:
                # The status has been sent: what is left is to say so in the stream.
                yield _event(refusal.body)
                return
        yield (self._chunk([], usage=self._usage()) if self._body.wants_usage else b"") + DONE

    async def _until_accepted(self, flight: Flight) -> list[Event]:
        """Events that came with the last acceptance, and have to be told still."""
        early: list[Event] = []
        while len(self._prompt_tokens) < len(self._jobs):
            early += [event for event in await self._some(flight) if event.kind in ("text", "finished")]
        return early

    async def _some(self, flight: Flight) -> list[Event]:
        try:
            async with asyncio.timeout_at(self._started_s + self._timeout_s):
                events = await flight.some()
        except TimeoutError:
            raise took_too_long(self._timeout_s) from None
        for event in events:
            self._note(event)
        return events

    def _note(self, event: Event) -> None:
        if event.kind == "refused":
            asked = "max_completion_tokens" if getattr(self._body, "max_completion_tokens", None) else "max_tokens"
            param = asked if event.code == TOO_MANY_TOKENS else self._form.prompt_field
            raise Refusal(HTTPStatus.BAD_REQUEST, event.message, code=event.code, param=param)
        if event.kind == "failed":
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, event.message, code=event.code)
        if event.kind == "accepted":
            # A prompt counts once, whatever number of texts it gets.
            first = self._index[event.job] % self._body.choices == 0
            self._prompt_tokens[event.job] = event.prompt_tokens if first else 0
            self._metrics.prompt_tokens(self._model.name, self._prompt_tokens[event.job])
            return
        if event.kind == "started":
            return
        self._new_tokens[event.job] = event.new_tokens
        if self._body.stream and not self._told_first:
            self._told_first = True
            self._metrics.first_piece(self._model.name, asyncio.get_running_loop().time() - self._started_s)

    def _told(self, events: list[Event]) -> bytes:
        return b"".join(
            self._chunk([self._form.piece(self._index[event.job], event.text, event.reason)])
            for event in events
            if event.kind in ("text", "finished")
        )

    def _chunk(self, choices: list[dict[str, Any]], *, usage: dict[str, int] | None = None) -> bytes:
        chunk: dict[str, Any] = {**self._head, "choices": choices}
        if self._body.wants_usage:
            chunk["usage"] = usage
        return _event(chunk)

    def _usage(self) -> dict[str, int]:
        prompt, new = sum(self._prompt_tokens.values()), sum(self._new_tokens.values())
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}

    def _make_jobs(self) -> list[TextJob]:
        body = self._body
        seed = random.randrange(SEED_MODULUS) if body.seed is None else body.seed
        prompts = [prompt for prompt in body.prompts for _ in range(body.choices)]
        return [
            TextJob(
                id=self._model.next_id(),
                prompt=prompt,
                max_new_tokens=body.max_new_tokens,
                default_new_tokens=body.default_new_tokens,
                # Texts of one request differ, and each is what its own seed gives.
                sampling=body.sampling(seed=seed + index),
                stops=body.stop or (),
                streamed=bool(body.stream),
            )
            for index, prompt in enumerate(prompts)
        ]


def _event(data: dict[str, Any]) -> bytes:
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).translate(LINE_ENDS)
    return f"data: {text}\n\n".encode()
