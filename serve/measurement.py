"""Interleaved measuring: every deployment in a process of its own, one at a time, in the order A B B A.

A machine that slows down for a second hits all of them alike: each block runs every deployment once, the next block in
reverse, and only ratios within a block are compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from serve.deployment import Deployment
from serve.runtime import RunOptions
from serve.worker_process import LoadReport, ProcessReport, WorkerProcess
from serve.workload import Prompts, Rows, Workload
from shearling.console import Advance, progress
from shearling.strict_json import Document


class Sample(Document):
    """One timed generation.

    Attributes:
        subject: index of the deployment.
        block: index over all sessions; samples of one block are a pair.
        position: place within the block.
        started_s: monotonic, since the measuring began.
        prompt_tokens: of each row; batch: number of rows.
        waited_s: time that the calling thread was ready but not running, of the whole sample; None where nobody counts.
        lost_first_s: part of `ttft_s` that went to other processes; 0 where it cannot be told.
        lost_decode_s: likewise of the sum of `gaps_s`.
    """

    subject: int
    session: int
    block: int
    position: int
    started_s: float
    prompt_tokens: int
    batch: int
    ttft_s: float
    gaps_s: tuple[float, ...]
    total_s: float
    waited_s: float | None
    lost_first_s: float
    lost_decode_s: float

    @property
    def tpot_s(self) -> float:
        """Mean time per output token after the first."""
        return sum(self.gaps_s) / len(self.gaps_s)

    @property
    def net_ttft_s(self) -> float:
        """Time to first token, without what other processes took."""
        return self.ttft_s - self.lost_first_s

    @property
    def net_tpot_s(self) -> float:
        """Time per output token, without what other processes took."""
        return (sum(self.gaps_s) - self.lost_decode_s) / len(self.gaps_s)


@dataclass
class Measurement:
    """Everything that was measured.

    Attributes:
        loads: by subject, one for each session.
        reports: by subject, one for each session, after its last whole block.
        samples: in the order of time; whole blocks only.
    """

    loads: list[list[LoadReport]]
    reports: list[list[ProcessReport]]
    samples: list[Sample] = field(default_factory=list)


Enough = Callable[[Sequence[Sample]], bool]
"""Looks at all samples after a whole block, and says whether more would change nothing."""


def measure(
    deployments: Sequence[Deployment],
    options: RunOptions,
    workload: Workload,
    *,
    enough: Enough | None = None,
    result: Measurement | None = None,
    on_block: Callable[[Measurement], None] | None = None,
) -> Measurement:
    """Measure deployments side by side.

    Args:
        deployments: at least one; verified, and their device checked.
        options: the same for all.
        workload: the same for all; fits every context.
        enough: ends it early.
        result: an earlier measurement of the same to continue.
        on_block: called after each whole block.

    Raises:
        ShearlingError: of the class that a worker raised.
    """
    run = _Run(deployments, options, workload, result)
    run.measure(enough, on_block or (lambda _: None))
    return run.result


class _Run:
    def __init__(self, deployments: Sequence[Deployment], options: RunOptions, workload: Workload, result: Measurement | None) -> None:
        self.result = result or Measurement([[] for _ in deployments], [[] for _ in deployments])
        self._deployments = deployments
        self._options = options
        self._workload = workload
        self._prompts = Prompts(deployments, workload)
        self._zero_s = time.monotonic()
        self._block = len(self.result.samples) // len(deployments)
        self._session = 1 + max((sample.session for sample in self.result.samples), default=-1)

    def measure(self, enough: Enough | None, on_block: Callable[[Measurement], None]) -> None:
        blocks = self._workload.sessions * self._workload.repeats
        units = len(self._deployments) * (self._workload.sessions * (1 + self._workload.warmup) + blocks - self._block)
        # A continued measurement has drawn these already.
        for _ in range(self._block):
            self._prompts.draw()
        with progress("measuring", total=units) as advance:
            while self._block < blocks:
                # A session that was interrupted is completed by a new one.
                size = self._workload.repeats - self._block % self._workload.repeats
                started_s = time.monotonic()
                if self._measure_session(size, advance, enough, on_block) or self._spent(ahead_s=time.monotonic() - started_s):
                    return

    def _measure_session(self, size: int, advance: Advance, enough: Enough | None, on_block: Callable[[Measurement], None]) -> bool:
        """Whether it is over: enough is known, or the time is spent."""
        over = False
        with ExitStack() as stack:
            workers = [stack.enter_context(WorkerProcess(deployment, self._options)) for deployment in self._deployments]
            loads = self._load(workers, advance)
            for _ in range(self._workload.warmup):
                rows, new_tokens = self._prompts.longest()
                for worker, own in zip(workers, rows, strict=True):
                    worker.generate(own, new_tokens=new_tokens)
                    advance(note="warm-up")
            for worker in workers:
                worker.settle()
            for kept, load in zip(self.result.loads, loads, strict=True):
                kept.append(load)
            for reports, worker in zip(self.result.reports, workers, strict=True):
                reports.append(worker.report())
            for _ in range(size):
                self.result.samples.extend(self._measure_block(workers, advance))
                for reports, worker in zip(self.result.reports, workers, strict=True):
                    reports[-1] = worker.report()
                self._block += 1
                on_block(self.result)
                over = self._spent() or (enough is not None and enough(self.result.samples))
                if over:
                    break
        self._session += 1
        return over

    def _load(self, workers: Sequence[WorkerProcess], advance: Advance) -> list[LoadReport]:
        loads = []
        # Where nobody asks how long loading takes, all may do it at once.
        if self._workload.separate_phases:
            for worker in workers:
                worker.start_loading()
        for worker in workers:
            loads.append(worker.finish_loading() if self._workload.separate_phases else worker.load())
            advance(note="loaded")
        return loads

    def _spent(self, *, ahead_s: float = 0.0) -> bool:
        """Whether the budget ends before `ahead_s` more seconds."""
        budget_s = self._workload.budget_s
        return budget_s is not None and time.monotonic() - self._zero_s + ahead_s > budget_s

    def _measure_block(self, workers: Sequence[WorkerProcess], advance: Advance) -> list[Sample]:
        rows, new_tokens = self._prompts.draw()
        order = list(range(len(workers)))
        samples = []
        for position, subject in enumerate(order if self._block % 2 == 0 else order[::-1]):
            started_s = time.monotonic() - self._zero_s
            sample = self._sample(workers[subject], rows[subject], new_tokens, subject=subject, position=position, started_s=started_s)
            samples.append(sample)
            advance(note=f"{1e3 * sample.ttft_s:.1f} ms to the first token")
        return samples

    def _sample(self, worker: WorkerProcess, rows: Rows, new_tokens: int, *, subject: int, position: int, started_s: float) -> Sample:
        first = worker.generate(rows, new_tokens=1) if self._workload.separate_phases else None
        whole = worker.generate(rows, new_tokens=new_tokens)
        # With several threads, or both phases in one call, nobody knows which wait cost what.
        told_apart = self._options.threads == 1 and first is not None
        leading, generation = (first or whole).generation, whole.generation
        return Sample(
            subject=subject,
            session=self._session,
            block=self._block,
            position=position,
            started_s=started_s,
            prompt_tokens=len(rows[0]),
            batch=len(rows),
            ttft_s=leading.ttft_s,
            gaps_s=generation.gaps_s,
            total_s=generation.total_s,
            waited_s=None if whole.waited_s is None else whole.waited_s + ((first.waited_s or 0.0) if first else 0.0),
            lost_first_s=leading.ttft_s * first.waited_share if told_apart and first else 0.0,
            lost_decode_s=sum(generation.gaps_s) * whole.waited_share if told_apart else 0.0,
        )
