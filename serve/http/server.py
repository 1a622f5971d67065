"""A uvicorn that ends in order: what was let in is answered, what comes later is refused in words."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from serve.http.door import Door
from shearling.errors import EnvironmentFault, UsageError

LAST_ANSWERS_S = 5
"""For answers to reach their clients after the last text was made."""
KEEP_ALIVE_S = 75


class DrainingServer(uvicorn.Server):
    """Keeps listening after SIGTERM or Ctrl-C until what runs has ended, so that new work is told why it is refused; a
    second signal, or the end of the grace, ends it at once.

    Args:
        door: the application.
        grace_s: for what runs.
        on_ready: called once it listens.
        has_models: whether anybody can still be answered; it ends where not.

    Attributes:
        deserted: it has ended because no model was left.
        unanswered: requests that were let in and had no whole answer when it ended.
    """

    def __init__(
        self, door: Door, *, grace_s: float, on_ready: Callable[[], None], has_models: Callable[[], bool]
    ) -> None:
        super().__init__(
            uvicorn.Config(
                door,
                log_config=None,
                access_log=False,
                # httptools takes the body of a request that offers an upgrade, as many clients do, for the next one.
                http="h11",
                # Its warnings are of what clients send.
                log_level="error",
                lifespan="off",
                ws="none",
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=LAST_ANSWERS_S,
            )
        )
        self._door = door
        self._grace_s = grace_s
        self._on_ready = on_ready
        self._has_models = has_models
        self.deserted = False
        self._draining: asyncio.Task[None] | None = None
        self.unanswered = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        await super().startup(sockets)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        await super().shutdown(sockets)
        self.unanswered = self._door.inside

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """See uvicorn; it would raise the signal again at the end, but to end in order is what was asked for."""
        if self._door.closed:
            self.should_exit = self.force_exit = True
            return
        self._door.closed = True

    async def on_tick(self, counter: int) -> bool:
        """See uvicorn; ten times a second."""
        if not self._door.closed and not self._has_models():
            self._door.closed = self.deserted = True
        if self._door.closed and self._draining is None:
            self._draining = asyncio.create_task(self._drain())
        return await super().on_tick(counter)

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(self._grace_s):
                await self._door.until_empty()
        except TimeoutError:
            # Whoever is still answered would be counted among the others, and models would go on.
            self.force_exit = True
        self.should_exit = True


BACKLOG = 2048
"""Clients that may wait to be let in, as uvicorn has it."""


def bind(host: str, port: int) -> socket.socket:
    """Take an address, without listening yet.

    Raises:
        UsageError: no such address.
        EnvironmentFault: it is taken, or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, OverflowError, UnicodeError) as error:
        raise UsageError(
            f"no address {host}:{port}: {error}", remedy="Give --host 127.0.0.1 and a --port up to 65535"
        ) from None
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _cannot_listen(error, host, port) from None
    return listener


def start_listening(listener: socket.socket) -> None:
    """Let clients in: `bind` keeps an address from whoever listens there, not from another that has bound it too.

    Raises:
        EnvironmentFault: another process was the first to listen.
    """
    host, port = listener.getsockname()[:2]
    try:
        listener.listen(BACKLOG)
    except OSError as error:
        raise _cannot_listen(error, host, port) from None


def _cannot_listen(error: OSError, host: str, port: int) -> EnvironmentFault:
    remedy = "Give another --port, or 0 for any that is free" if error.errno == errno.EADDRINUSE else "Give another"
    return EnvironmentFault(f"cannot listen on {host}:{port}: {error.strerror}", remedy=remedy)
