from __future__ import annotations

import asyncio
import itertools
import json
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from serve.http import application
from serve.http.answer_form import CompletionForm
from serve.http.application import EventResponse
from serve.http.exchange import Exchange
from serve.http.metrics import ServerMetrics
from serve.http.protocol import Event, TextJob
from serve.http.request_body import CompletionBody
from serve.http.served_model import Flight, ServedModel

SCOPE = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "method": "POST", "headers": []}


@pytest.mark.parametrize("left", [False, True])
def test_what_makes_events_ends_with_those_who_read_them(left: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody reads on, or the client has left."""
    monkeypatch.setattr(application, "LAST_EVENT_S", 0.05)
    closed = []

    async def events() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"data: x\n\n"
                await asyncio.sleep(0.001)
        finally:
            closed.append(True)

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.body" and not left:
            await asyncio.Event().wait()

    async def receive() -> dict[str, Any]:
        if not left:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def respond() -> None:
        await asyncio.wait_for(EventResponse(events(), timeout_s=600 if left else 0.01)(SCOPE, receive, send), 10)

    asyncio.run(respond())
    assert closed == [True]


def test_an_event_that_says_that_time_is_over_is_sent() -> None:
    """It is made when the time of the answer is over, so a little after it."""
    sent = []

    async def events() -> AsyncIterator[bytes]:
        yield b"data: x\n\n"
        await asyncio.sleep(0.1)
        yield b"data: too late\n\n"

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    asyncio.run(EventResponse(events(), timeout_s=0.05)(SCOPE, receive, send))
    assert [message.get("body") for message in sent[1:]] == [b"data: x\n\n", b"data: too late\n\n", b""]
    assert not sent[-1]["more_body"]


class Saying(ServedModel):
    """Answers with one text, without a process."""

    fingerprint = "fp_0"

    def __init__(self, text: str) -> None:
        self.name = "tiny"
        self._text = text
        self._ids = itertools.count(1)

    @contextmanager
    def run(self, jobs: Sequence[TextJob]) -> Iterator[Flight]:
        events: asyncio.Queue[Event] = asyncio.Queue()
        for job in jobs:
            events.put_nowait(Event(job=job.id, kind="accepted", prompt_tokens=1))
            events.put_nowait(Event(job=job.id, kind="finished", text=self._text, new_tokens=1, reason="stop"))
        yield Flight(events, len(jobs))


def test_an_event_is_one_line_whatever_a_client_takes_for_its_end() -> None:
    characters = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    ends = "".join(character for character in characters if len(f"a{character}b".splitlines()) > 1)
    assert len(ends) > 5
    body = CompletionBody(model="tiny", prompt="a", stream=True)

    async def stream() -> list[bytes]:
        metrics = ServerMetrics({})
        exchange = Exchange(Saying(f"a{ends}ü"), body, CompletionForm(), metrics=metrics, timeout_s=10)
        return [event async for event in exchange.stream()]

    piece, done, *others = [line for line in b"".join(asyncio.run(stream())).decode().splitlines() if line]
    assert json.loads(piece.removeprefix("data: "))["choices"][0]["text"] == f"a{ends}ü"
    assert (done, others) == ("data: [DONE]", [])
    assert "ü" in piece
