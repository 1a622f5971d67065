"""The executor that works on the nodes of a Ray cluster: one actor for each worker.

Ray places the actors, moves what is asked and what comes of it, and notices nodes and processes that die. It could
start lost actors again by itself, but would keep their jobs for them; where no room is left for an actor, its jobs
would wait forever. So they are handed to another one, see `shearling.executors.crew`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
from ray.exceptions import RayError

from shearling.console import log
from shearling.errors import ArtefactMissing, EnvironmentFault
from shearling.executors.attempt import attempt
from shearling.executors.crew import CrewExecutor, Done, Event, Failed, Lost, Opened
from shearling.executors.executor import OpenWork, Shippable, Work, Workforce
from shearling.executors.identity import check_identity, own_identity
from shearling.executors.ray_address import FINDS_ONE

PULSE_S = 5.0
"""Between two questions whether an actor lives."""

SILENCE_S = 12 * PULSE_S
"""An actor that has not answered for so long hangs: it is replaced. Ray itself notices nodes that are gone."""

GRACE_S = 5.0
"""So long actors may take to delete what they were sent, and what those have left that were killed."""


class RayExecutor(CrewExecutor):
    """See the module.

    Args:
        workforce: without a number of workers there are as many as the cluster has room for; never more.
        open_work: called once in every worker.

    Raises:
        EnvironmentFault: no node has room for a worker.
    """

    def __init__(self, workforce: Workforce, open_work: OpenWork) -> None:
        self._connected = not ray.is_initialized()
        self._output = contextlib.ExitStack()
        try:
            if self._connected:
                # Ray writes of workers that die on stdout, where results belong.
                self._output.enter_context(contextlib.redirect_stdout(sys.stderr))
                # Ray ends the process with the number of the signal, where ours says how it ended.
                with _kept_handler(signal.SIGTERM):
                    ray.init(address=workforce.address or FINDS_ONE, log_to_driver=False, logging_level="ERROR")
            room = _room(workforce)
            workers = room if workforce.workers is None else min(room, workforce.workers)
            if workforce.workers is not None and workers < workforce.workers:
                log.print(f"the cluster has room for {workers} of {workforce.workers} workers")
            super().__init__(RayCrew(workforce, open_work), workers)
        except BaseException:
            self._disconnect()
            raise

    def close(self) -> None:
        """See `Executor.close`."""
        super().close()
        self._disconnect()

    def _disconnect(self) -> None:
        # A connection that the caller had made stays.
        if self._connected and ray.is_initialized():
            ray.shutdown()
        self._output.close()


@ray.remote(max_restarts=0, max_task_retries=0, concurrency_groups={"pulse": 1})
class Actor:
    """What runs in a worker: errors are values, since Ray would wrap them."""

    def __init__(self) -> None:
        self._work: Work | None = None
        self._received: tempfile.TemporaryDirectory[str] | None = None
        self._name = f"node {ray.util.get_node_ip_address()}"
        # Nodes that share a temporary directory do not know each other's processes.
        self._prefix = f"shearling-run-{ray.get_runtime_context().get_node_id()}-"

    def open(self, identity: Mapping[str, str], open_work: bytes, parcel: Mapping[str, Any] | None = None) -> Any:
        """Load what the work needs, from a parcel if there is one; the error if there was one."""
        _, error = attempt(functools.partial(check_identity, identity, where=self._name))
        if error is None:
            self._work, error = attempt(self._open, open_work, parcel)
            if error is not None:
                error.where = f"{self._name}: {error.where}" if error.where else self._name
        return error

    def do(self, request: Any) -> Any:
        """The outcome and no error, or no outcome and the error."""
        if self._work is None:
            raise RuntimeError("the work has not been opened")
        return attempt(self._work, request)

    @ray.method(concurrency_group="pulse")
    def pulse(self) -> None:
        """Answer, whatever else goes on."""

    @ray.method(concurrency_group="pulse")
    def discard(self) -> None:
        """Delete the files of the parcel; no work can be done from then on."""
        if self._received is not None:
            self._received.cleanup()
            sweep(Path(tempfile.gettempdir()), self._prefix)

    def _open(self, open_work: bytes, parcel: Mapping[str, Any] | None) -> Work:
        opener: Any = ray.cloudpickle.loads(open_work)
        if parcel is None:
            return opener()
        # The work may come back to its files at any time: weights of variants are read when a layer takes one.
        sweep(Path(tempfile.gettempdir()), self._prefix)
        self._received = tempfile.TemporaryDirectory(prefix=f"{self._prefix}{os.getpid()}-", ignore_cleanup_errors=True)
        directory = Path(self._received.name)
        for name, reference in parcel.items():
            file = directory / name
            file.parent.mkdir(parents=True, exist_ok=True)
            ray.get(reference).tofile(file)
        return opener.at(directory)()


class RayMember:
    """One actor.

    Attributes:
        opening: the reference that becomes ready when the work is open; None from then on.
        shipped: whether it has been sent the files of the work.
        doing: the reference to the outcome of its job, and the ticket.
        asked: the reference to the answer to `Actor.pulse`; None where it has answered.
        asked_s: when it was asked, on the monotonic clock, or has opened the work; before that it may wait for a place.
    """

    def __init__(self, actor: Any, opening: Any) -> None:
        self.actor = actor
        self.opening = opening
        self.shipped = False
        self.doing: Any = None
        self.ticket = -1
        self.asked: Any = None
        self.asked_s = 0.0

    @property
    def name(self) -> str:
        """See `Member.name`."""
        return f"actor {self.actor._actor_id.hex()[:8]}"

    def give(self, ticket: int, request: Any) -> None:
        """See `Member.give`."""
        self.ticket, self.doing = ticket, self.actor.do.remote(request)

    @property
    def waited_for(self) -> list[Any]:
        """References that become ready by what the actor does."""
        return [reference for reference in (self.opening, self.doing, self.asked) if reference is not None]


class RayCrew:
    """Starts actors and waits for them.

    Args:
        workforce: what a worker takes of a node.
        open_work: called once in every actor.
        silence_s: see `SILENCE_S`.
    """

    def __init__(self, workforce: Workforce, open_work: OpenWork, *, silence_s: float = SILENCE_S) -> None:
        self._options = {
            "num_cpus": workforce.threads_per_worker,
            "num_gpus": workforce.gpus_per_worker,
            "scheduling_strategy": "SPREAD",
        }
        # Opened by the worker after it has compared versions, before which nothing of ours may be unpickled there.
        self._open_work = ray.cloudpickle.dumps(open_work)
        self._files: Mapping[str, Path] = open_work.files if isinstance(open_work, Shippable) else {}
        self._parcel: dict[str, Any] = {}
        self._silence_s = silence_s
        self._members: list[RayMember] = []
        self._asked_s = time.monotonic()

    def hire(self) -> RayMember:
        """See `Crew.hire`."""
        actor_type: Any = Actor  # what Ray has made of the class
        actor = actor_type.options(**self._options).remote()
        member = RayMember(actor, actor.open.remote(dict(own_identity()), self._open_work))
        self._members.append(member)
        return member

    def listen(self, timeout_s: float) -> Sequence[Event]:
        """See `Crew.listen`."""
        self._ask_for_pulses()
        owners = {reference: member for member in self._members for reference in member.waited_for}
        if not owners:
            return []
        ready, rest = ray.wait(list(owners), timeout=timeout_s)
        if rest:
            ready += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        events: list[Event] = []
        for reference in ready:
            if owners[reference] in self._members:
                events += self._hear(owners[reference], reference)
        for member in list(self._members):
            silent_s = 0.0 if member.asked is None or member.opening is not None else time.monotonic() - member.asked_s
            if silent_s > self._silence_s:
                events.append(self._lose(member, f"did not answer for {self._silence_s:.0f} s"))
        return events

    def dismiss(self) -> None:
        """See `Crew.dismiss`."""
        discarding = [member.actor.discard.remote() for member in self._members if member.shipped]
        if discarding:
            ray.wait(discarding, num_returns=len(discarding), timeout=GRACE_S)
        for member in self._members:
            _kill(member.actor)
        self._members.clear()

    def _hear(self, member: RayMember, reference: Any) -> list[Event]:
        try:
            answer = ray.get(reference)
        # Of the actor, its process or its node; an error of the work is an answer.
        except RayError as error:
            return [self._lose(member, _reason(error))]
        if reference == member.asked:
            member.asked = None
            return []
        if reference == member.opening and isinstance(answer, ArtefactMissing) and self._files and not member.shipped:
            self._ship(member)
            return []
        if reference == member.opening:
            member.opening, member.asked_s = None, time.monotonic()
            return [Opened(member) if answer is None else Failed(member, answer)]
        member.doing = None
        outcome, failure = answer
        return [Done(member, member.ticket, outcome) if failure is None else Failed(member, failure)]

    def _ship(self, member: RayMember) -> None:
        """Send the files of the work to a node that does not see them; they go into the object store once."""
        if not self._parcel:
            size_gib = sum(file.stat().st_size for file in self._files.values()) / 2**30
            log.print(f"a node does not see the run: its files are sent ({size_gib:.1f} GiB)")
            self._parcel = {name: ray.put(np.fromfile(file, np.uint8)) for name, file in self._files.items()}
        member.shipped = True
        member.opening = member.actor.open.remote(dict(own_identity()), self._open_work, self._parcel)

    def _ask_for_pulses(self) -> None:
        now_s = time.monotonic()
        if now_s - self._asked_s < min(PULSE_S, self._silence_s / 4):
            return
        self._asked_s = now_s
        for member in self._members:
            if member.asked is None:
                member.asked, member.asked_s = member.actor.pulse.remote(), now_s

    def _lose(self, member: RayMember, reason: str) -> Lost:
        self._members.remove(member)
        _kill(member.actor)
        return Lost(member, reason)


def sweep(directory: Path, prefix: str) -> None:
    """Delete what workers have left behind that were killed.

    Args:
        directory: with that of each worker.
        prefix: of the names of those of this node, before the process.
    """
    for left in directory.glob(f"{prefix}*"):
        process = left.name.removeprefix(prefix).partition("-")[0]
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            shutil.rmtree(left, ignore_errors=True)


def _kill(actor: Any) -> None:
    with contextlib.suppress(RayError, ValueError):
        ray.kill(actor)


def _reason(error: RayError) -> str:
    """The first line that says something; Ray's messages go on for a page."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "Error" in line and "traceback" not in line.lower()]
    return (told[-1:] or lines[:1] or [type(error).__name__])[0][:200]


def _room(workforce: Workforce) -> int:
    """How many workers the nodes have room for, whatever else may be running there.

    Raises:
        EnvironmentFault: none.
    """
    cpus, gpus = workforce.threads_per_worker or 1, workforce.gpus_per_worker
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(
        min(int(node.get("CPU", 0) // cpus), int(node.get("GPU", 0) // gpus) if gpus else 2**31) for node in nodes
    )
    if not room:
        shown = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
        raise EnvironmentFault(
            f"no node has room for a worker of {cpus} CPUs and {gpus:g} GPUs: there are {shown or 'no nodes'}",
            where="--executor ray",
            remedy="Ask for fewer --threads or --gpus-per-worker, or add nodes",
        )
    return room


@contextlib.contextmanager
def _kept_handler(number: int) -> Iterator[None]:
    """Whoever handled a signal before does so after."""
    handler = signal.getsignal(number)
    try:
        yield
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(number, handler)
