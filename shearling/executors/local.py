"""The executor without workers: this process does one job after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from shearling.executors.executor import Job, OpenWork, Work, Workforce


class LocalExecutor:
    """See the module.

    Args:
        workforce: of it nothing matters here; threads are the business of the work.
        open_work: called with the first job.
    """

    workers = 1

    def __init__(self, workforce: Workforce, open_work: OpenWork) -> None:
        self._open_work = open_work
        self._work: Work | None = None

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Any]]:
        """See `Executor.run`: in their order."""
        for place, job in enumerate(jobs):
            if self._work is None:
                self._work = self._open_work()
            yield place, self._work(job.request)

    def close(self) -> None:
        """Nothing to end."""
