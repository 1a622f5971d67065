"""The executor that works in processes of this machine."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing.connection
import os
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from shearling.errors import ShearlingError
from shearling.executors.crew import CrewExecutor, Done, Event, Failed, Lost, Opened
from shearling.executors.executor import OpenWork, Workforce
from shearling.executors.fork_server import worker_context
from shearling.executors.process_worker import serve_pipe

SILENCE_S = 60.0
"""A process that has not been heard of for so long hangs, or is stopped: it is replaced."""

PULSES = 12
"""So many signs of life a process gives in that time."""

GRACE_S = 2.0
"""So long a process without work may take to end in order."""


class ProcessExecutor(CrewExecutor):
    """See the module.

    Args:
        workforce: without a number of workers there are as many as the processors have room for.
        open_work: called once in every process.
    """

    def __init__(self, workforce: Workforce, open_work: OpenWork) -> None:
        super().__init__(ProcessCrew(open_work), workforce.workers_here)


class ProcessMember:
    """One process, and the pipe to it.

    Attributes:
        heard_s: when it last gave a sign of life, on the monotonic clock.
    """

    def __init__(self, process: Any, pipe: multiprocessing.connection.Connection, errors: Path) -> None:
        self.process = process
        # This tells whether a process of that number is still the same one; it may have died already.
        self._identity: psutil.Process | None = None
        with contextlib.suppress(psutil.NoSuchProcess):
            self._identity = psutil.Process(process.pid)
        self.pipe = pipe
        self.errors = errors
        self.heard_s = time.monotonic()

    @property
    def name(self) -> str:
        """See `Member.name`."""
        return f"process {self.process.pid}"

    def give(self, ticket: int, request: Any) -> None:
        """See `Member.give`."""
        # One that has died in the meantime is noticed by its silence: the end of the pipe is an event, too.
        with contextlib.suppress(BrokenPipeError):
            self.pipe.send((ticket, request))

    def end(self) -> str:
        """Kill it; returns how it ended, in words."""
        self.process.join(timeout=1.0)
        died = self.process.exitcode
        self.kill()
        self.pipe.close()
        with contextlib.suppress(OSError):
            lines = self.errors.read_text(errors="replace").strip().splitlines()
            if died is not None and died > 0 and lines:
                return f"ended with exit code {died}: {lines[-1]}"
        if died is None:
            return "did not answer"
        return f"ended with {f'signal {signal.Signals(-died).name}' if died < 0 else f'exit code {died}'}"

    def kill(self) -> None:
        """Kill it, if it lives; `Process.kill` does nothing where the process that it was forked from has died."""
        with contextlib.suppress(psutil.NoSuchProcess):
            if self._identity is not None:
                self._identity.kill()
        self.process.join()


class ProcessCrew:
    """Starts processes and listens to their pipes.

    Args:
        open_work: called once in every process.
        silence_s: see `SILENCE_S`.
    """

    def __init__(self, open_work: OpenWork, *, silence_s: float = SILENCE_S) -> None:
        self._open_work = open_work
        self._silence_s = silence_s
        self._context = worker_context()
        self._directory = tempfile.TemporaryDirectory(prefix="shearling-workers-")
        self._numbers = itertools.count()
        self._members: list[ProcessMember] = []

    def hire(self) -> ProcessMember:
        """See `Crew.hire`."""
        ours, theirs = self._context.Pipe()
        errors = Path(self._directory.name) / f"{next(self._numbers)}.log"
        process = self._context.Process(
            target=serve_pipe,
            args=(theirs, self._open_work, str(errors)),
            kwargs={"pulse_s": self._silence_s / PULSES, "environment": dict(os.environ)},
            daemon=True,
        )
        process.start()
        theirs.close()
        member = ProcessMember(process, ours, errors)
        self._members.append(member)
        return member

    def listen(self, timeout_s: float) -> Sequence[Event]:
        """See `Crew.listen`."""
        by_pipe = {member.pipe: member for member in self._members}
        events: list[Event] = []
        for pipe in multiprocessing.connection.wait(list(by_pipe), timeout_s):
            events += self._hear(by_pipe[pipe])  # type: ignore[index] # only pipes were waited for
        now_s = time.monotonic()
        for member in list(self._members):
            if now_s - member.heard_s > self._silence_s:
                events.append(self._lose(member))
        return events

    def dismiss(self) -> None:
        """See `Crew.dismiss`."""
        for member in self._members:
            member.pipe.close()
        until_s = time.monotonic() + GRACE_S
        for member in self._members:
            member.process.join(max(0.0, until_s - time.monotonic()))
            member.kill()
        self._members.clear()
        self._directory.cleanup()

    def _hear(self, member: ProcessMember) -> Iterator[Event]:
        try:
            while member.pipe.poll():
                kind, ticket, content = member.pipe.recv()
                member.heard_s = time.monotonic()
                if kind == "opened":
                    yield Opened(member)
                elif kind == "done":
                    yield Done(member, ticket, content)
                elif kind == "failed":
                    yield Failed(member, content if isinstance(content, ShearlingError) else ShearlingError(content))
        except (EOFError, OSError):
            yield self._lose(member)

    def _lose(self, member: ProcessMember) -> Lost:
        self._members.remove(member)
        return Lost(member, member.end())
