"""Interleaved measuring: every deployment in a process of its own, one at a time, in the order A B B A.

A machine that slows down for a second hits all of them alike: each block runs every deployment once, the next block in
reverse, and only ratios within a block are compared. A workload with turns lets them change places within a generation
as well, see `serve.bench.turns`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from serve.bench.time_budget import TimeBudget
from serve.bench.turns import can_take_turns, generate_in_turns
from serve.bench.worker_process import LoadReport, ProcessReport, Timed, WorkerProcess
from serve.bench.workload import Prompts, Rows, Workload
from serve.runtimes.deployment import Deployment
from serve.runtimes.runtime import RunOptions
from serve.runtimes.speculation.settings import speculates
from shearling.console import Advance, progress
from shearling.strict_json import Document

Count = TypeVar("Count", int, float)

USUAL_SHARE = 0.6
"""Of the tokens of a generation."""


class Sample(Document):
    """One timed generation.

    Attributes:
        subject: index of the deployment.
        block: index over all sessions; samples of one block are a pair.
        position: place within the block.
        started_s: monotonic, since the measuring began.
        prompt_tokens: of each row; batch: number of rows.
        waited_s: time that the computing threads were ready but not running, in the whole sample; None where nobody
            counts.
        lost_first_s: part of `ttft_s` that went to other processes; 0 where it cannot be told.
        lost_decode_s: likewise of the sum of `gaps_s`.
        token_ids: that were made, of the first row.
        other_rows: of the others; none where the runtime does not tell them.
        stolen_s: taken from the process's CPUs by a hypervisor, in the whole sample; None where nobody counts.
        preemptions: how often a thread was put off its CPU, in the whole sample.
        instructions: of the call that made all tokens; None on most virtual machines.
        guessed: somebody in this block guesses: several tokens came of one reading, whose time is spread over them.
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
    token_ids: tuple[int, ...] = ()
    other_rows: tuple[tuple[int, ...], ...] = ()
    stolen_s: float | None = None
    preemptions: int | None = None
    instructions: int | None = None
    guessed: bool = False

    @property
    def wall_s(self) -> float:
        """Of a call for the first token and of one for all."""
        return self.ttft_s + self.total_s

    @property
    def tpot_s(self) -> float:
        """Mean time per output token after the first."""
        return sum(self.gaps_s) / len(self.gaps_s)

    @property
    def net_ttft_s(self) -> float:
        """Time to first token, without what other processes took."""
        return self.ttft_s - self.lost_first_s

    @property
    def usual_gap_s(self) -> float:
        """Mean time of the faster tokens after the first, `USUAL_SHARE` of them: what disturbs a machine for
        milliseconds hits some tokens, and no counter says which. Of all tokens where some were guessed: the faster
        ones are then those of the luckier guesses.
        """
        if self.guessed:
            return self.tpot_s
        gaps_s = sorted(self.gaps_s)[: math.ceil(USUAL_SHARE * len(self.gaps_s))]
        return sum(gaps_s) / len(gaps_s)


@dataclass
class MeasuredBlocks:
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
"""Looks at all samples, and says whether more would change nothing."""


@dataclass(frozen=True)
class SessionPlan:
    """How to divide a budget among sessions whose number is open.

    Attributes:
        sessions: that have to fit: the first ones end early rather than leave no time to others.
        blocks: of the session that begins, from all samples so far and from what new processes cost, in blocks.
        counting: how many of a session's blocks count, from its samples; where some do not, it gets up to twice as
            many.
    """

    sessions: int
    blocks: Callable[[Sequence[Sample], float], int]
    counting: Callable[[Sequence[Sample]], int]


def measure(
    deployments: Sequence[Deployment],
    options: RunOptions,
    workload: Workload,
    *,
    result: MeasuredBlocks,
    enough: Enough | None = None,
    plan: SessionPlan | None = None,
    on_block: Callable[[MeasuredBlocks], None] | None = None,
) -> None:
    """Measure deployments side by side.

    Args:
        deployments: at least one; verified, and their device checked.
        options: the same for all.
        workload: the same for all; fits every context.
        result: grows by whole blocks; an earlier measurement of the same is continued.
        enough: ends it early; asked after each whole block, or with a plan after each session.
        plan: divides the workload's budget; without, sessions have the workload's number and length.
        on_block: called after each whole block.

    Raises:
        ShearlingError: of the class that a worker raised.
    """
    _Run(deployments, options, workload, result, plan).measure(enough, on_block or (lambda _: None))


class _Run:
    def __init__(
        self,
        deployments: Sequence[Deployment],
        options: RunOptions,
        workload: Workload,
        result: MeasuredBlocks,
        plan: SessionPlan | None,
    ) -> None:
        self._result = result
        self._plan = plan
        self._deployments = deployments
        self._guessed = any(speculates(deployment.properties) for deployment in deployments)
        self._options = options
        self._workload = workload
        self._prompts = Prompts(deployments, workload)
        self._budget = TimeBudget(workload.budget_s)
        self._block = len(self._result.samples) // len(deployments)
        self._session = 1 + max((sample.session for sample in self._result.samples), default=-1)

    def measure(self, enough: Enough | None, on_block: Callable[[MeasuredBlocks], None]) -> None:
        blocks = self._workload.sessions * self._workload.repeats
        if self._plan is None and self._block >= blocks:
            # All there is to measure; what was interrupted is the writing.
            return
        # A continued measurement has drawn these already.
        for _ in range(self._block):
            self._prompts.draw()

        def settled() -> bool:
            return enough is not None and enough(self._result.samples)

        def over() -> bool:
            if self._plan is not None and self._workload.budget_s is not None:
                return self._budget.spent()
            return self._block >= blocks or self._budget.spent() or (self._plan is None and settled())

        units = len(self._deployments) * (self._workload.sessions * (1 + self._workload.warmup) + blocks - self._block)
        with (
            progress("measuring", total=units)
            if self._workload.budget_s is None
            else timed_progress(self._workload.budget_s) as advance
        ):
            while not self._measure_session(over, on_block, advance):
                if self._plan is not None and (settled() or not self._budget.affords_session()):
                    break
                self._session += 1

    def _measure_session(
        self, over: Callable[[], bool], on_block: Callable[[MeasuredBlocks], None], advance: Advance
    ) -> bool:
        """Whether everything is over; otherwise new processes go on."""
        with ExitStack() as stack:
            size, before = self._session_blocks(), len(self._result.samples)
            self._budget.begin_session()
            # Who starts first may get the better memory: each side does in turn.
            order = list(range(len(self._deployments)))[:: 1 if self._session % 2 == 0 else -1]
            started = {
                subject: stack.enter_context(WorkerProcess(self._deployments[subject], self._options))
                for subject in order
            }
            self._set_up(started, advance)
            workers = [started[subject] for subject in sorted(started)]
            self._budget.end_setup()
            while True:
                self._result.samples.extend(self._measure_block(workers, advance))
                for reports, worker in zip(self._result.reports, workers, strict=True):
                    reports[-1] = worker.report()
                self._block += 1
                self._budget.count_block()
                on_block(self._result)
                if over():
                    return True
                if self._plan is not None:
                    counting = self._plan.counting(self._result.samples[before:])
                    if self._budget.session_is_over(size, counting, session=self._session, wanted=self._plan.sessions):
                        return False
                elif self._budget.restarts(size, first=self._session == 0):
                    return False

    def _session_blocks(self) -> int:
        if self._plan is not None:
            return self._plan.blocks(self._result.samples, self._budget.setup_blocks())
        # A session that was interrupted is completed by a new one.
        return self._workload.repeats - self._block % self._workload.repeats

    def _set_up(self, workers: Mapping[int, WorkerProcess], advance: Advance) -> None:
        # Where nobody asks how long loading takes, all may do it at once.
        together = self._workload.separate_phases
        for worker in workers.values() if together else ():
            worker.start_loading()
        loads = {}
        for subject, worker in workers.items():
            loads[subject] = worker.finish_loading() if together else worker.load()
            advance(note="loaded")
        for _ in range(self._workload.warmup):
            rows, new_tokens = self._prompts.longest()
            for subject, worker in workers.items():
                worker.generate(rows[subject], new_tokens=new_tokens)
                advance(note="warm-up")
        for subject, worker in workers.items():
            worker.settle()
            self._result.loads[subject].append(loads[subject])
            self._result.reports[subject].append(worker.report())

    def _measure_block(self, workers: Sequence[WorkerProcess], advance: Advance) -> list[Sample]:
        rows, new_tokens = self._prompts.draw()
        order = list(range(len(workers)))[:: 1 if self._block % 2 == 0 else -1]
        firsts: dict[int, Timed] = {}
        if self._workload.separate_phases:
            # Like phases follow each other, so that little can change between them: A B for the first token, B A for
            # the rest.
            firsts = {
                subject: first for subject, first, _ in self._generate([(i, workers[i], rows[i]) for i in order], 1)
            }
            order.reverse()
        samples = []
        works = [(subject, workers[subject], rows[subject]) for subject in order]
        for position, (subject, whole, started_s) in enumerate(self._generate(works, new_tokens)):
            first = firsts.get(subject)
            samples.append(
                self._sample(whole, first, rows[subject], subject=subject, position=position, started_s=started_s)
            )
            advance(note=f"{1e3 * samples[-1].ttft_s:.1f} ms to the first token")
        return samples

    def _generate(
        self, works: Sequence[tuple[int, WorkerProcess, Rows]], new_tokens: int
    ) -> Iterator[tuple[int, Timed, float]]:
        """Subject, what it took, and when it began; in the order of the works."""
        turn_s = self._workload.turn_s
        # Where a reading's time is spread over its tokens, nobody knows which of them a stop fell between.
        if turn_s is not None and len(works) > 1 and can_take_turns(self._options.device) and not self._guessed:
            started_s = self._budget.elapsed_s()
            pairs = [(worker, rows) for _, worker, rows in works]
            taken = generate_in_turns(pairs, new_tokens=new_tokens, turn_s=turn_s)
            for (subject, _, _), timed in zip(works, taken, strict=True):
                yield subject, timed, started_s
            return
        for subject, worker, rows in works:
            started_s = self._budget.elapsed_s()
            yield subject, worker.generate(rows, new_tokens=new_tokens), started_s

    def _sample(
        self, whole: Timed, first: Timed | None, rows: Rows, *, subject: int, position: int, started_s: float
    ) -> Sample:
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
            token_ids=generation.token_ids,
            other_rows=generation.other_rows,
            stolen_s=_sum(whole.stolen_s, first.stolen_s if first else 0.0),
            preemptions=_sum(whole.preemptions, first.preemptions if first else 0),
            instructions=whole.instructions,
            guessed=self._guessed,
        )


def _sum(first: Count | None, second: Count | None) -> Count | None:
    return None if first is None or second is None else first + second


@contextmanager
def timed_progress(seconds: float) -> Iterator[Advance]:
    """Progress of work that ends with its time rather than with a number of steps."""
    total, shown, started_s = math.ceil(seconds), 0, time.monotonic()
    with progress("measuring, seconds at most", total=total) as advance:

        def advance_time(*, note: str | None = None) -> None:
            nonlocal shown
            while shown < min(total, time.monotonic() - started_s):
                shown += 1
                advance(note=note)

        yield advance_time
