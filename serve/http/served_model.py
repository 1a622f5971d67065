"""The server's handle on the process of one model."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pydantic

import shearling.errors
from serve.http.limits import Limits
from serve.http.protocol import Command, Event, Events, Loaded, Loading, TextJob
from serve.http.refusal import model_is_down, queue_is_full, too_many_texts
from serve.runtimes.deployment import Deployment
from serve.runtimes.known_crash import signal_name
from serve.runtimes.runtime import RunOptions
from shearling.artefact import utc_now
from shearling.console import log
from shearling.errors import ResourceExhausted, ShearlingError

ROOT = Path(__file__).resolve().parents[2]
LINE_BYTES = 1 << 26
END_S = 5.0
"""What a process gets to end by itself."""


def how_it_ended(code: int | None) -> str:
    """In words, of the exit status of a model's process."""
    if code == -signal.SIGKILL:
        return "the system killed its process, most likely for memory"
    name = None if code is None else signal_name(code)
    return f"its process ended with code {code}" if name is None else f"its process died of {name}"


class Flight:
    """What happens to the jobs of one request.

    Args:
        events: of all of them, as they come.
        jobs: how many there are.
    """

    def __init__(self, events: asyncio.Queue[Event], jobs: int) -> None:
        self._events = events
        self._under_way = jobs

    @property
    def ended(self) -> bool:
        """Whether every job had its last event."""
        return self._under_way == 0

    async def some(self) -> list[Event]:
        """All that is there, once there is something."""
        events = [await self._events.get()]
        while not self._events.empty():
            events.append(self._events.get_nowait())
        self._under_way -= sum(event.is_last for event in events)
        return events


class ServedModel:
    """Everything that the server knows of a model.

    Args:
        name: as clients name it.
        deployment: verified.
        options: how it runs.
        limits: of the server.
    """

    def __init__(self, name: str, deployment: Deployment, *, options: RunOptions, limits: Limits) -> None:
        self.name = name
        self.deployment = deployment
        self.created = utc_now()
        self.alive = False
        self.cache_usage = 0.0
        self.new_tokens = 0
        self._options = options
        self._limits = limits
        self._ids = itertools.count(1)
        self._events: dict[int, asyncio.Queue[Event]] = {}
        self._started: set[int] = set()
        self._process: asyncio.subprocess.Process | None = None
        self._listening: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def fingerprint(self) -> str:
        """What a seed holds for: the weights."""
        return f"fp_{self.deployment.weights_sha256[:12]}"

    @property
    def running(self) -> int:
        """Texts that are decoded."""
        return len(self._started)

    @property
    def waiting(self) -> int:
        """Texts that have no place yet."""
        return len(self._events) - len(self._started)

    async def start(self) -> Loaded:
        """Load it.

        Raises:
            ShearlingError: of the class that loading raised.
        """
        environment = dict(os.environ)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            # Not from the directory that this happens to run in, which may hold another `serve`.
            "-P",
            "-m",
            "serve.http.model_process",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
            limit=LINE_BYTES,
            # Ctrl-C goes to a terminal's whole group; here the server decides what it means.
            start_new_session=True,
        )
        self._write(Loading(deployment=self.deployment, options=self._options, limits=self._limits))
        reply = json.loads(await self._hear() or "{}")
        if "facts" not in reply:
            raise await self._loading_error(reply)
        self.alive = True
        self._listening = asyncio.create_task(self._listen())
        return Loaded.model_validate_json(json.dumps(reply))

    async def _loading_error(self, reply: Mapping[str, Any]) -> ShearlingError:
        if "error" in reply:
            error_class = getattr(shearling.errors, reply["error"], ShearlingError)
            error: ShearlingError = error_class(reply["message"], where=reply["where"], remedy=reply["remedy"])
            return error
        code = await self._process.wait() if self._process else None
        where = self.deployment.label
        if code == -signal.SIGKILL:
            return ResourceExhausted(how_it_ended(code), where=where, remedy="Serve fewer at once")
        return ShearlingError(f"{how_it_ended(code)} while it loaded", where=where, remedy="See its messages above")

    async def stop(self) -> None:
        """End its process."""
        process = self._process
        if process is None:
            return
        self._stopping = True
        if process.stdin is not None:
            process.stdin.close()
        try:
            # One that still loads reads nothing, and nothing there is owed an answer.
            await asyncio.wait_for(process.wait(), END_S if self.alive else 0.0)
        except TimeoutError:
            with suppress(ProcessLookupError):
                # It leads a session: what compiles for it ends as well.
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        if self._listening is not None:
            await self._listening

    @contextmanager
    def run(self, jobs: Sequence[TextJob]) -> Iterator[Flight]:
        """Let jobs run, and forget those that have not ended at the end of the context.

        Args:
            jobs: their ids come from `next_id`.

        Raises:
            Refusal: the queue is full, or would be with these jobs alone, or the process is not there.
        """
        if not self.alive:
            raise model_is_down(self.name)
        places = self._limits.concurrency + self._limits.queue
        if len(jobs) > places:
            raise too_many_texts(len(jobs), most=places)
        if len(self._events) + len(jobs) > places:
            raise queue_is_full(self.name, waiting=self.waiting)
        events: asyncio.Queue[Event] = asyncio.Queue()
        ids = [job.id for job in jobs]
        self._events.update(dict.fromkeys(ids, events))
        try:
            for job in jobs:
                self._write(Command(add=job))
            yield Flight(events, len(jobs))
        finally:
            for job_id in ids:
                if self._forget(job_id):
                    self._write(Command(cancel=job_id))

    def next_id(self) -> int:
        """Of a new job."""
        return next(self._ids)

    async def _listen(self) -> None:
        # A process that is killed may leave half a line.
        while (line := await self._hear()).endswith(b"\n"):
            told = Events.model_validate_json(line)
            self.cache_usage, self.new_tokens = told.cache_usage, told.new_tokens
            for event in told.events:
                queue = self._events.get(event.job)
                if queue is None:
                    continue  # it was cancelled, and this crossed the word of it
                if event.kind == "started":
                    self._started.add(event.job)
                if event.is_last:
                    self._forget(event.job)
                queue.put_nowait(event)
        self.alive = False
        down = model_is_down(self.name)
        for job_id, queue in list(self._events.items()):
            self._forget(job_id)
            queue.put_nowait(Event(job=job_id, kind="failed", message=down.message, code=down.code))
        code = await self._process.wait() if self._process else None
        if not self._stopping:
            log.print(f"{self.name}: {how_it_ended(code)}")

    def _forget(self, job_id: int) -> bool:
        """Whether there was such a job."""
        self._started.discard(job_id)
        return self._events.pop(job_id, None) is not None

    def _write(self, line: pydantic.BaseModel) -> None:
        # Where the process has died, `_listen` says so to everybody. What piles up while it computes is bounded by the
        # queue and the size of a body.
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.write(line.model_dump_json().encode() + b"\n")

    async def _hear(self) -> bytes:
        stdout = self._process.stdout if self._process else None
        return await stdout.readline() if stdout else b""
