from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from serve.http import application
from serve.http.application import EventResponse

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
