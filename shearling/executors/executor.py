"""What an executor is: it does jobs that do not depend on each other, on any number of workers.

One is made by calling the implementation of its record in `shearling.registry.executors`. The work is opened once in
every worker, which may take minutes (a super-network is loaded); a job then takes seconds. What a job gives must not
depend on which worker did it, nor on what it did before. So the caller may sort outcomes by job, and gets the same for
any number of workers and after any crash.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from shearling.errors import UsageError
from shearling.registry.executors import EXECUTORS, ExecutorEntry

Work = Callable[[Any], Any]
"""From what is asked to what comes of it; both are sent between processes, and so are small and can be pickled."""

OpenWork = Callable[[], Work]
"""Called once in every worker. Executors with processes of their own pickle it: it names what to load, and is found by
its module and its name."""


@runtime_checkable
class Shippable(Protocol):
    """An `OpenWork` that reads a directory, which can be sent to a node that does not have it."""

    @property
    def files(self) -> Mapping[str, Path]:
        """All that it reads: path inside the directory -> the file here."""
        ...

    def at(self, directory: Path) -> OpenWork:
        """The same, reading another directory."""
        ...


@dataclass(frozen=True)
class Job:
    """One thing to do.

    Attributes:
        request: what the work is called with.
        key: jobs of the same key are cheaper one after another on the same worker.
    """

    request: Any
    key: Hashable = None


@dataclass(frozen=True)
class Workforce:
    """How much there is to work with.

    Attributes:
        executor: a name in EXECUTORS.
        workers: None takes as many as there is room for.
        threads: of each worker; None leaves it to the executor: as many as the process has where it works itself, one
            elsewhere.
        gpus_per_worker: may be a fraction, where several workers share a device.
        address: of the cluster, HOST:PORT; auto finds one on this machine.
    """

    executor: str = "local"
    workers: int | None = None
    threads: int | None = None
    gpus_per_worker: float = 0.0
    address: str | None = None

    @property
    def entry(self) -> ExecutorEntry:
        """The record of the executor.

        Raises:
            UsageError: there is none of this name.
        """
        return EXECUTORS.get(self.executor, where="--executor")

    @property
    def threads_per_worker(self) -> int | None:
        """Threads of a worker; one unless told otherwise, so that more workers do not mean fewer threads each, and
        with them other rounding.
        """
        return self.threads if self.threads is not None or self.entry.in_process else 1

    @property
    def workers_here(self) -> int:
        """Workers of one machine: as many as are asked for, else as its processors have room for."""
        return self.workers or max(1, available_cpus() // (self.threads_per_worker or 1))


class Executor(Protocol):
    """See the module. It holds workers between calls of `run`, until it is closed."""

    @property
    def workers(self) -> int:
        """Most jobs that are done at the same time."""
        ...

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Any]]:
        """Do every job once.

        A job whose worker is lost is done again by another one.

        Yields:
            The place of a job in `jobs`, and its outcome, in the order in which they are finished.

        Raises:
            ShearlingError: of the class that the work raised; or workers are lost again and again.
        """
        ...

    def close(self) -> None:
        """End the workers, at once."""
        ...


def check_workforce(workforce: Workforce) -> None:
    """Refuse what this machine cannot do, before anything is loaded.

    Raises:
        UsageError: an option that the executor does not have.
        PackageMissing: the executor needs a package that is not installed.
        EnvironmentFault: there is no cluster at the address.
    """
    entry = workforce.entry
    unknown = {
        "--workers": entry.in_process and workforce.workers not in (None, 1),
        "--address": not entry.takes_address and workforce.address is not None,
        "--gpus-per-worker": not entry.takes_gpus and workforce.gpus_per_worker > 0,
    }
    for option, given in unknown.items():
        if given:
            having = [other.name for other in EXECUTORS if _has(other, option)]
            raise UsageError(
                f"the executor {entry.name} has no such option",
                where=option,
                remedy=f"Leave it out, or choose an executor that has it: {', '.join(having)}",
            )
    check = entry.load_check()
    if check is not None:
        check(workforce)


def make_executor(workforce: Workforce, open_work: OpenWork) -> Executor:
    """The executor that is asked for; workers start with the first job.

    Raises:
        ShearlingError: see `check_workforce`.
    """
    executor: Executor = workforce.entry.load()(workforce, open_work)
    return executor


def limit_threads(count: int | None) -> None:
    """Let torch compute with so many threads in this process; None leaves it as it is."""
    if count is not None:
        import torch

        torch.set_num_threads(count)


def available_cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def _has(entry: ExecutorEntry, option: str) -> bool:
    return {
        "--workers": not entry.in_process,
        "--address": entry.takes_address,
        "--gpus-per-worker": entry.takes_gpus,
    }[option]
