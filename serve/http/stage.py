"""What `python -m serve http` does: load, listen, serve, end in order."""

from __future__ import annotations

import asyncio
import importlib.util
import ipaddress
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from serve.http.limits import Limits
from serve.http.named_target import NamedTarget
from serve.runtimes.deployment import find_deployment
from serve.runtimes.device import check_device
from serve.runtimes.runtime import RunOptions
from shearling.command_line import Terminated
from shearling.console import log
from shearling.errors import CheckFailed, PackageMissing, RuntimeCrashed, UsageError
from shearling.strict_json import Document

if TYPE_CHECKING:
    from serve.http.served_model import ServedModel
    from serve.http.server import DrainingServer

KEY_VARIABLE = "SHEARLING_API_KEY"
PACKAGES = ("fastapi", "prometheus_client", "uvicorn", "uvloop")
INSTALL = "pip install 'fastapi>=0.160,<1' 'prometheus-client>=0.22,<1' 'uvicorn>=0.50,<1' 'uvloop>=0.20,<1'"
"""The extra `http` of pyproject.toml."""


class Served(Document):
    """What a server did until it ended.

    Attributes:
        answered: requests that were let in, each with its whole answer or an error.
    """

    answered: int


def serve_models(models: Sequence[NamedTarget], *, options: RunOptions, limits: Limits, host: str, port: int) -> Served:
    """Serve until a signal says to end, or no model is left.

    Args:
        models: exports with OpenVINO.
        options: the same for each.
        limits: see there.
        host: address to listen on.
        port: 0 is any that is free; the log says which.

    Raises:
        PackageMissing: the extra is not installed.
        UsageError: two models of one name, an empty API key, no such address.
        EnvironmentFault: the address is taken.
        ArtefactError: a directory cannot be used.
        RuntimeCrashed: the processes of all models have died.
        CheckFailed: the grace was over, or a second signal came, before all answers were given.
        Terminated: SIGTERM came while the models loaded.
    """
    _require_packages()
    api_key = _api_key()
    _check_names(models)
    deployments = {
        model.name: find_deployment(model.target.only("openvino"), device=options.device) for model in models
    }
    check_device("openvino", options.device)
    import uvloop

    from serve.http.application import make_application
    from serve.http.served_model import ServedModel
    from serve.http.server import DrainingServer, bind

    served = {
        name: ServedModel(name, deployment, options=options, limits=limits) for name, deployment in deployments.items()
    }
    with bind(host, port) as listener:
        private = ipaddress.ip_address(listener.getsockname()[0]).is_loopback
        # Elsewhere names are given by who runs the network, and a key proves more than a name.
        own_host = host if private and api_key is None else None
        door = make_application(served, limits=limits, api_key=api_key, own_host=own_host)
        server = DrainingServer(
            door,
            grace_s=limits.grace_s,
            on_ready=lambda: _tell_address(listener, guarded=private or api_key is not None),
            has_models=lambda: any(model.alive for model in served.values()),
        )
        # What the server takes of a processor, the models lack.
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_serve(list(served.values()), server, listener))
        except asyncio.CancelledError:
            raise Terminated from None
    if server.deserted:
        raise RuntimeCrashed(
            "no model is left: every process has ended", remedy="The log says how; let a supervisor restart the server"
        )
    if server.unanswered:
        raise CheckFailed(
            f"{server.unanswered} of {door.accepted} requests were not answered when the server ended",
            remedy="Give more --grace, or send the signal once",
        )
    return Served(answered=door.accepted)


async def _serve(models: Sequence[ServedModel], server: DrainingServer, listener: socket.socket) -> None:
    from serve.http.server import start_listening

    with _cancelled_by_sigterm():
        try:
            await _load(models)
            start_listening(listener)
            await server.serve(sockets=[listener])
        finally:
            # It ends already, and soon.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            await asyncio.gather(*(model.stop() for model in models))


async def _load(models: Sequence[ServedModel]) -> None:
    for model in models:
        loaded = await model.start()
        facts = loaded.facts
        chats = "" if loaded.chats else ", no chat template"
        log.print(
            f"{model.name}: {model.deployment.label}{chats} ({facts.runtime}, {facts.provider}, {facts.precision})",
        )
        if loaded.lone:
            log.print(f"{model.name}: attention in the layers for a text that nothing runs beside")


@contextmanager
def _cancelled_by_sigterm() -> Iterator[None]:
    """SIGTERM cancels this task, as Ctrl-C does in asyncio; what a handler raises, uvloop logs, and goes on."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def cancel(_signal: int, _frame: FrameType | None) -> None:
        if task is not None:
            loop.call_soon_threadsafe(task.cancel)

    previous = signal.signal(signal.SIGTERM, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _tell_address(listener: socket.socket, *, guarded: bool) -> None:
    host, port = listener.getsockname()[:2]
    if not guarded:
        log.print(f"anybody who reaches {host} may use it: set {KEY_VARIABLE} to ask for a key")
    shown = f"[{host}]" if ":" in host else host
    log.print(f"ready: http://{shown}:{port}/v1")


def _require_packages() -> None:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise PackageMissing(f"serving over HTTP needs {', '.join(missing)}", remedy=INSTALL)


def _api_key() -> str | None:
    key = os.environ.get(KEY_VARIABLE)
    if key is not None and not key.strip():
        raise UsageError(f"{KEY_VARIABLE} is set and empty", remedy="Give a key, or unset it")
    return key.strip() if key is not None else None


def _check_names(models: Sequence[NamedTarget]) -> None:
    names = [model.name for model in models]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"two models are called {twice}", remedy="Name them: NAME=DIR")
