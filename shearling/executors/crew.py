"""What executors with workers of their own have in common: who does what, and what happens when a worker is lost.

A crew hires workers and hears of them; here jobs are handed out, and handed out again. Processes and a Ray cluster are
two crews.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from shearling.console import log
from shearling.errors import EnvironmentFault, ResourceExhausted, ShearlingError
from shearling.executors.executor import Job
from shearling.executors.job_queue import JobQueue

LOSSES_OF_A_JOB = 5
"""A job that so many workers were lost over is what they were lost by."""

LOSSES_WHILE_OPENING = 5
"""So many workers in a row that are lost before they have opened the work, and the next one would be, too."""

WAIT_S = 1.0
"""How long a crew is listened to at a time, so that Ctrl-C is heard."""

PATIENCE_S = 600.0
"""How long a crew may be without any worker."""


class Member(Protocol):
    """A worker."""

    @property
    def name(self) -> str:
        """Where it is, for messages."""
        ...

    def give(self, ticket: int, request: Any) -> None:
        """Let it do a job; it does one at a time."""
        ...


@dataclass(frozen=True)
class Opened:
    """A worker is ready."""

    member: Member


@dataclass(frozen=True)
class Done:
    """A worker has done a job."""

    member: Member
    ticket: int
    outcome: Any


@dataclass(frozen=True)
class Failed:
    """The work itself raised an error: another worker would fare no better."""

    member: Member
    error: ShearlingError


@dataclass(frozen=True)
class Lost:
    """A worker is gone, whatever it was doing."""

    member: Member
    reason: str


Event = Opened | Done | Failed | Lost


class Crew(Protocol):
    """Hires workers and listens to them."""

    def hire(self) -> Member:
        """Start a worker; an `Opened`, a `Failed` or a `Lost` follows."""
        ...

    def listen(self, timeout_s: float) -> Sequence[Event]:
        """What has happened, at the latest after the timeout; a worker that is lost is told once."""
        ...

    def dismiss(self) -> None:
        """End all workers, at once."""
        ...


@dataclass
class Post:
    """What a worker is doing.

    Attributes:
        ready: the work is open.
        ticket: of the job that it does.
        at_hand: key of that job or of the last one.
    """

    ready: bool = False
    ticket: int | None = None
    at_hand: Hashable = None


class CrewExecutor:
    """An executor with a crew, see the module.

    Args:
        crew: where workers come from.
        workers: how many.
    """

    def __init__(self, crew: Crew, workers: int) -> None:
        self.workers = workers
        self._crew = crew
        self._posts: dict[Member, Post] = {}
        self._tickets = itertools.count()
        self._lost_opening = 0
        self._manned_s = time.monotonic()

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Any]]:
        """See `Executor.run`."""
        queue, places, losses = JobQueue(jobs), dict[int, int](), Counter[int]()
        left = len(jobs)
        while left:
            self._staff(left)
            self._hand_out(queue, jobs, places)
            finished: list[tuple[int, Any]] = []
            trouble: ShearlingError | None = None
            for event in self._crew.listen(WAIT_S):
                try:
                    ticket = self._note(event)
                except ShearlingError as error:
                    trouble = error
                    continue
                if isinstance(event, Done) and event.ticket in places:
                    finished.append((places.pop(event.ticket), event.outcome))
                elif isinstance(event, Lost) and ticket in places:
                    place = places.pop(ticket)
                    losses[place] += 1
                    trouble = _too_many(losses[place], event) or trouble
                    queue.put_back(place)
            # Who is free is given work before an outcome is looked at, which may take the caller a while.
            self._hand_out(queue, jobs, places)
            left -= len(finished)
            yield from finished
            if trouble is not None:
                raise trouble

    def close(self) -> None:
        """See `Executor.close`."""
        self._crew.dismiss()
        self._posts.clear()

    def _staff(self, jobs: int) -> None:
        # Each opens the work: more than there are jobs for would do it for nothing.
        while len(self._posts) < min(self.workers, jobs):
            self._posts[self._crew.hire()] = Post()
        if any(post.ready for post in self._posts.values()):
            self._manned_s = time.monotonic()
        elif time.monotonic() - self._manned_s > PATIENCE_S:
            raise EnvironmentFault(
                f"no worker has become ready in {PATIENCE_S:.0f} s",
                remedy="See whether the cluster has nodes that are free; what is finished is kept",
            )

    def _hand_out(self, queue: JobQueue, jobs: Sequence[Job], places: dict[int, int]) -> None:
        for member, post in self._posts.items():
            if not queue:
                return
            if post.ready and post.ticket is None:
                others = {other.at_hand for other in self._posts.values() if other.ticket is not None}
                place = queue.take(at_hand=post.at_hand, others=others)
                post.ticket, post.at_hand = next(self._tickets), jobs[place].key
                places[post.ticket] = place
                member.give(post.ticket, jobs[place].request)

    def _note(self, event: Event) -> int | None:
        """Keep the posts up to date; returns the ticket of the job that a lost worker held."""
        match event:
            case Opened(member):
                self._posts[member].ready, self._lost_opening = True, 0
            case Done(member):
                self._posts[member].ticket = None
            case Failed(_, error):
                raise error
            case Lost(member, reason):
                post = self._posts.pop(member)
                log.print(f"a worker is lost, another takes its place: {member.name}: {reason}")
                if not post.ready:
                    self._lose_opening(event)
                return post.ticket
        return None

    def _lose_opening(self, lost: Lost) -> None:
        """Stop hiring where nobody gets as far as the work: there may be memory for the others alone."""
        self._lost_opening += 1
        if self._lost_opening < LOSSES_WHILE_OPENING:
            return
        told = f"{self._lost_opening} workers in a row were lost before they had loaded anything"
        if self.workers == 1:
            raise EnvironmentFault(
                f"{told}, the last one: {lost.reason}",
                where=lost.member.name,
                remedy="See whether they have enough memory: fewer workers need less",
            )
        self.workers, self._lost_opening = self.workers - 1, 0
        log.print(f"{told}: no more than {self.workers} are started from now on")


def _too_many(losses: int, lost: Lost) -> ResourceExhausted | None:
    if losses < LOSSES_OF_A_JOB:
        return None
    return ResourceExhausted(
        f"{losses} workers were lost over the same piece of work, the last one: {lost.reason}",
        where=lost.member.name,
        remedy="See whether it had enough memory: fewer workers, or a smaller --batch-size; what is finished is kept",
    )
