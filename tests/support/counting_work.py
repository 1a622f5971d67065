"""Work without a model, for executors: it can be told to take its time, to fail, and to end its worker."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from shearling.errors import ArtefactMissing, UsageError
from shearling.executors.executor import Job, Workforce, make_executor


@dataclass(frozen=True)
class Request:
    """What is asked.

    Attributes:
        number: to be squared.
        seconds: that it takes.
        act: `refuse`, `break` and `fill` raise errors, `die` ends the worker, `die_once` the first one that gets it,
            `hang` stops it.
    """

    number: int
    seconds: float = 0.0
    act: str = ""


@dataclass(frozen=True)
class Squares:
    """Opens the work.

    Attributes:
        diary: file that every finished job is written into; None for none.
        needs: a file without which it cannot be opened.
    """

    diary: Path | None = None
    needs: Path | None = None

    def __call__(self) -> Callable[[Request], tuple[int, int]]:
        if self.needs is not None and not self.needs.exists():
            raise ArtefactMissing("no super_adapter artefact here", where=self.needs, remedy="Make it")
        return self._square

    def _square(self, request: Request) -> tuple[int, int]:
        """The square, and the process that computed it."""
        self._act(request)
        time.sleep(request.seconds)
        if self.diary is not None:
            with self.diary.open("a") as stream:
                stream.write(f"{request.number}\n")
        return request.number**2, os.getpid()

    def _act(self, request: Request) -> None:
        match request.act:
            case "refuse":
                raise UsageError("this number is not liked", where="here", remedy="Take another")
            case "break":
                raise ValueError("cannot be squared")
            case "fill":
                import torch

                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "die_once" | "hang" if self.diary is not None:
                mark = self.diary.with_suffix(".mark")
                if not mark.exists():
                    mark.touch()
                    os.kill(os.getpid(), signal.SIGKILL if request.act == "die_once" else signal.SIGSTOP)


@dataclass(frozen=True)
class SentSquares(Squares):
    """Opens where the file that it needs is; who does not see it is sent a copy."""

    copy: Path | None = None

    @property
    def files(self) -> dict[str, Path]:
        return {} if self.copy is None else {"needed": self.copy}

    def at(self, directory: Path) -> SentSquares:
        return replace(self, needs=directory / "needed", copy=None)


@dataclass(frozen=True)
class Beginning:
    """Work that tells how its worker began.

    Attributes:
        libraries: that it had imported before any work was opened, of those asked for.
        kept: objects that no collection of garbage looks at.
        process: its own.
        parent: that it was started by.
        environment: its names.
    """

    libraries: frozenset[str] = frozenset()
    kept: int = 0
    process: int = 0
    parent: int = 0
    environment: frozenset[str] = frozenset()

    def __call__(self) -> Callable[[Sequence[str]], Beginning]:
        return self.tell

    def tell(self, names: Sequence[str]) -> Beginning:
        """Of its own worker; this module imports none of the libraries."""
        libraries = frozenset(name for name in names if sys.modules.get(name) is not None)
        return Beginning(libraries, gc.get_freeze_count(), os.getpid(), os.getppid(), frozenset(os.environ))


def squares(workforce: Workforce, requests: list[Request], work: Squares | None = None) -> list[int]:
    """In the order of the requests; fails where an outcome comes twice or never."""
    executor = make_executor(workforce, work or Squares())
    try:
        outcomes = list(executor.run([Job(request, key=request.number) for request in requests]))
    finally:
        executor.close()
    assert sorted(place for place, _ in outcomes) == list(range(len(requests)))
    return [square for _, (square, _) in sorted(outcomes)]
