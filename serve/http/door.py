"""What every request passes on its way in and out: whose it is, whether new work is taken, and the counts."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import time
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.http.metrics import ServerMetrics
from serve.http.reading import discard_body
from serve.http.refusal import Refusal, shutting_down

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics")
OPEN_PATHS = ("/health",)
"""Asked by those who watch over a server, and have no key."""


class Door:
    """ASGI middleware.

    Args:
        application: behind it.
        api_key: that clients must send; None lets everybody in.
        own_host: a name of this machine, where clients must ask for one; None lets them ask for any.
        metrics: where requests are counted.
    """

    def __init__(
        self, application: ASGIApp, *, api_key: str | None, own_host: str | None, metrics: ServerMetrics
    ) -> None:
        self._application = application
        self._own_host = own_host
        self._key = None if api_key is None else _digest(api_key.encode())
        self._metrics = metrics
        self._inside = 0
        self._empty = asyncio.Event()
        self._empty.set()
        self.closed = False
        self.accepted = 0

    @property
    def inside(self) -> int:
        """Requests that were let in and are not answered yet."""
        return self._inside

    async def until_empty(self) -> None:
        """Wait for the last answer of those that were let in."""
        await self._empty.wait()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        started_s, status = time.perf_counter(), HTTPStatus.INTERNAL_SERVER_ERROR.value

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is not None:
                await discard_body(Request(scope, receive))
                await refused(refusal)(scope, receive, send_noted)
            elif scope["method"] == "POST":
                await self._let_in(scope, receive, send_noted)
            else:
                await self._application(scope, receive, send_noted)
        finally:
            path = next((path for path in PATHS if scope["path"].startswith(path)), "other")
            self._metrics.request(path, status, time.perf_counter() - started_s)

    async def _let_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._inside += 1
        self.accepted += 1
        self._empty.clear()
        try:
            await self._application(scope, receive, send)
        finally:
            self._inside -= 1
            if self._inside == 0:
                self._empty.set()

    def _refusal(self, scope: Scope) -> Refusal | None:
        host = Headers(scope=scope).get("host", "")
        if self._own_host is not None and not _names_this_machine(host, self._own_host):
            return Refusal(
                HTTPStatus.FORBIDDEN,
                f"without a key, this server is asked for as localhost, {self._own_host} or an address, not as "
                f"{host[:100]!r}: name one of them as Host, or give the server a key",
                code="host_not_allowed",
            )
        if self._key is not None and scope["path"] not in OPEN_PATHS:
            scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
            # Of digests, so that the time tells nothing of the key, its length included.
            right = hmac.compare_digest(_digest(given.strip().encode("latin-1", "replace")), self._key)
            if not right or scheme.lower() != "bearer":
                return Refusal(
                    HTTPStatus.UNAUTHORIZED,
                    "the API key is missing or wrong: send it as Authorization: Bearer KEY",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        if self.closed and scope["method"] == "POST":
            return shutting_down()
        return None


def refused(refusal: Refusal) -> JSONResponse:
    """A refusal as a response."""
    body: dict[str, Any] = refusal.body
    return JSONResponse(body, status_code=refusal.status, headers=refusal.headers)


def _names_this_machine(host: str, own_host: str) -> bool:
    """Whether what a `Host` names cannot be a name that somebody else gave to this machine's address: by that, a web
    page from elsewhere would pass for one of this server. Browsers always send one.
    """
    try:
        name = (urlsplit(f"//{host}").hostname or "").removesuffix(".")
    except ValueError:
        return False
    if not host or name in ("localhost", own_host.lower()) or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
