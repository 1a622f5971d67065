"""Which job a free worker gets."""

from __future__ import annotations

from collections.abc import Container, Hashable, Sequence

from shearling.executors.executor import Job


class JobQueue:
    """Jobs that nobody does yet.

    A worker goes on with the key that it has at hand. Else it gets the first job whose key nobody has at hand; and
    where all that is left is in somebody's hands, the last one: so few long evaluations are split between workers, and
    many short ones are not.

    Args:
        jobs: in the order in which their outcomes are wanted.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = jobs
        self._waiting = list(range(len(jobs)))

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def take(self, *, at_hand: Hashable, others: Container[Hashable]) -> int:
        """The place of the next job for a worker, which is no longer in the queue.

        Args:
            at_hand: key of what the worker did last.
            others: keys that other workers are busy with.
        """
        mine = (place for place in self._waiting if self._jobs[place].key == at_hand)
        nobodys = (place for place in self._waiting if self._jobs[place].key not in others)
        chosen = next(mine, next(nobodys, self._waiting[-1]))
        self._waiting.remove(chosen)
        return chosen

    def put_back(self, place: int) -> None:
        """Return a job whose worker is lost; it goes first, since its outcome is wanted first."""
        self._waiting.insert(0, place)
