"""Interleaved measuring: every deployment in a process of its own, one at a time, in the order A B B A.

A machine that slows down for a second hits all of them alike: each block runs every deployment once, the next block in
reverse, and only ratios within a block are compared. Each block has its own random prompt, the same for all, because
OpenVINO GenAI caches prefixes: a repeated prompt would report the first token of a cache hit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import pydantic

from serve.deployment import Deployment
from serve.runtime import RunOptions
from serve.worker_process import LoadReport, WorkerProcess
from shearling.console import Advance, progress
from shearling.errors import UsageError
from shearling.strict_json import Document, describe_validation_error


class Workload(Document):
    """What each deployment is asked to do.

    Attributes:
        prompt_tokens: random token ids, drawn anew for every block.
        new_tokens: decoded greedily, end tokens ignored.
        repeats: measured blocks per session.
        warmup: blocks of full length that are thrown away, per session.
        sessions: how often all processes are started anew; a process can be lucky or unlucky in its memory for life.
        seed: of the prompts and of the bootstrap.
    """

    prompt_tokens: int = pydantic.Field(ge=1)
    new_tokens: int = pydantic.Field(ge=2)
    repeats: int = pydantic.Field(ge=1)
    warmup: int = pydantic.Field(ge=0)
    sessions: int = pydantic.Field(default=1, ge=1)
    seed: int = 0


def make_workload(prompt_tokens: int, new_tokens: int, *, repeats: int = 5, warmup: int = 1, sessions: int = 1, seed: int = 0) -> Workload:
    """A workload from what a user asked for; see `Workload`.

    Raises:
        UsageError: names every number that is out of range.
    """
    try:
        return Workload(prompt_tokens=prompt_tokens, new_tokens=new_tokens, repeats=repeats, warmup=warmup, sessions=sessions, seed=seed)
    except pydantic.ValidationError as error:
        raise UsageError(
            f"this workload cannot be measured: {describe_validation_error(error)}", remedy="A decode needs 2 new tokens, the first and one after it"
        ) from None


class Sample(Document):
    """One timed generation.

    Attributes:
        subject: index of the deployment.
        block: index over all sessions; samples of one block are a pair.
        position: place within the block.
        started_s: monotonic, since the measuring began.
    """

    subject: int
    session: int
    block: int
    position: int
    started_s: float
    ttft_s: float
    gaps_s: tuple[float, ...]
    total_s: float

    @property
    def tpot_s(self) -> float:
        """Mean time per output token after the first."""
        return sum(self.gaps_s) / len(self.gaps_s)


@dataclass
class Measurement:
    """Everything that was measured.

    Attributes:
        loads: by subject, one for each session.
        peak_bytes: by subject, one for each session.
        samples: in the order of time.
    """

    loads: list[list[LoadReport]]
    peak_bytes: list[list[int]]
    samples: list[Sample] = field(default_factory=list)


Enough = Callable[[Sequence[Sample]], bool]
"""Looks at all samples after a whole block, and says whether more would change nothing."""


def measure(deployments: Sequence[Deployment], options: RunOptions, workload: Workload, *, enough: Enough | None = None) -> Measurement:
    """Measure deployments side by side.

    Args:
        deployments: at least one; verified, and their device checked.
        options: the same for all.
        workload: the same for all; fits every context.
        enough: ends a session early.

    Raises:
        ShearlingError: of the class that a worker raised.
    """
    run = _Run(deployments, options, workload)
    units = workload.sessions * len(deployments) * (1 + workload.warmup + workload.repeats)
    with progress("measuring", total=units) as advance:
        for session in range(workload.sessions):
            run.measure_session(session, advance, enough)
    return run.result


class _Run:
    def __init__(self, deployments: Sequence[Deployment], options: RunOptions, workload: Workload) -> None:
        self.result = Measurement([[] for _ in deployments], [[] for _ in deployments])
        self._deployments = deployments
        self._options = options
        self._workload = workload
        self._prompts = _Prompts(deployments, workload)
        self._zero_s = time.monotonic()

    def measure_session(self, session: int, advance: Advance, enough: Enough | None) -> None:
        with ExitStack() as stack:
            workers = [stack.enter_context(WorkerProcess(deployment, self._options)) for deployment in self._deployments]
            for loads, worker in zip(self.result.loads, workers, strict=True):
                loads.append(worker.load())
                advance(note="loaded")
            for _ in range(self._workload.warmup):
                prompt = self._prompts.draw()
                for worker in workers:
                    worker.generate(prompt, new_tokens=self._workload.new_tokens)
                    advance(note="warm-up")
            for repeat in range(self._workload.repeats):
                self._measure_block(workers, session, session * self._workload.repeats + repeat, advance)
                if enough is not None and enough(self.result.samples):
                    break
            for peaks, worker in zip(self.result.peak_bytes, workers, strict=True):
                peaks.append(worker.peak_memory_bytes())

    def _measure_block(self, workers: Sequence[WorkerProcess], session: int, block: int, advance: Advance) -> None:
        prompt = self._prompts.draw()
        order = list(range(len(workers)))
        for position, subject in enumerate(order if block % 2 == 0 else order[::-1]):
            started_s = time.monotonic() - self._zero_s
            generation = workers[subject].generate(prompt, new_tokens=self._workload.new_tokens)
            self.result.samples.append(
                Sample(
                    subject=subject,
                    session=session,
                    block=block,
                    position=position,
                    started_s=started_s,
                    ttft_s=generation.ttft_s,
                    gaps_s=generation.gaps_s,
                    total_s=generation.total_s,
                )
            )
            advance(note=f"{1e3 * generation.ttft_s:.1f} ms to the first token")


class _Prompts:
    def __init__(self, deployments: Sequence[Deployment], workload: Workload) -> None:
        # Without a configuration any vocabulary has at least this many ids.
        self._vocabulary = min(deployment.vocabulary or 256 for deployment in deployments)
        self._length = workload.prompt_tokens
        self._generator = np.random.default_rng(workload.seed)

    def draw(self) -> list[int]:
        return [int(token) for token in self._generator.integers(0, self._vocabulary, size=self._length)]
