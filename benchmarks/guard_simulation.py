"""How often would the guard err? A hundred checks in seconds, on recorded times or on invented noise.

    python -m benchmarks.guard_simulation record runs/demo/sparse-int8 --output runs/traces/sparse.json [--rivals 2]
    python -m benchmarks.guard_simulation simulate runs/traces/sparse.json --slowdown 1.1
    python -m benchmarks.guard_simulation simulate --noise bursts --slowdown 1.04 --max-ratio 1.02 --budget 300

`record` measures several processes of one model side by side, as a check measures two, again and again in new ones.
`simulate` draws whole sessions of a recording, two processes of each, slows one of them down by the factor that it is
given, and lets the guard judge them, with the clock that the recorded times would have taken: the real planning, looks,
and end of the time. A check that stays open is repeated with the budget that it asked for, to see whether that settles
it.

It says nothing of what the recording did not meet: the real counts are those of `benchmarks.latency_guard`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.command import command
from benchmarks.latency_guard import rivals
from serve.bench.benchmark import Benchmark, run_benchmark
from serve.bench.benchmark_artefact import read_benchmark
from serve.bench.measurement import Sample
from serve.bench.time_budget import CHECK_S, TimeBudget
from serve.bench.workload import make_workload
from serve.guard.judging import counting_blocks, is_settled, judge_metrics, paired_blocks, plan_blocks
from serve.guard.process_pairs import FIRST_PAIRS
from serve.guard.regression import TURN_S, Verdict, judge
from serve.runtimes.runtime import RunOptions
from shearling.strict_json import write_document
from shearling.target import parse_target

PROCESSES = 4
BLOCKS = 12
OUTCOMES = ("pass", "regression", "inconclusive")

Session = Sequence[Sequence[Sample]]
"""Samples of one process each, in the order of blocks."""


@dataclass(frozen=True)
class Trace:
    """Times to draw from.

    Attributes:
        setup_s: of a pair of processes.
        sessions: processes that ran side by side.
    """

    setup_s: float
    sessions: Sequence[Session]


@dataclass(frozen=True)
class Noise:
    """How invented times scatter; standard deviations of log times.

    Attributes:
        between: of processes.
        within: of samples; their tails are those of Student's t with 3 degrees of freedom.
        lasting: correlation of a sample's noise with that of the one before.
        unlucky: share of processes that are 12 % slower for life.
        stolen: share of samples that a hypervisor makes 30 % longer, and says so.
        drift: of the whole machine from block to block, common to both sides.
        setup_s, block_s: what a pair of processes and a block of both sides take.
    """

    between: float = 0.004
    within: float = 0.015
    lasting: float = 0.0
    unlucky: float = 0.0
    stolen: float = 0.0
    drift: float = 0.02
    setup_s: float = 3.0
    block_s: float = 0.3


NOISES = {
    "quiet": Noise(),
    "noisy": Noise(between=0.008, within=0.04),
    "lasting": Noise(between=0.006, within=0.02, lasting=0.9),
    "bursts": Noise(between=0.006, within=0.02, stolen=0.15),
    "unlucky": Noise(unlucky=0.04),
    "drifting": Noise(drift=0.15),
    "large": Noise(setup_s=6.0, block_s=1.5),
}


def read_trace(path: Path) -> Trace:
    """Of a benchmark whose deployments are all the same."""
    return trace_of(read_benchmark(path).samples)


def trace_of(samples: Sequence[Sample]) -> Trace:
    """Sort samples by session and process; what lies between two sessions is the setup of all their processes."""
    sessions: dict[int, dict[int, list[Sample]]] = {}
    for sample in samples:
        sessions.setdefault(sample.session, {}).setdefault(sample.subject, []).append(sample)
    found = [list(own.values()) for own in sessions.values()]
    spans = [
        (
            min(sample.started_s for own in session for sample in own),
            max(sample.started_s + sample.total_s for own in session for sample in own),
        )
        for session in found
    ]
    pauses = [after[0] - before[1] for before, after in itertools.pairwise(spans)] or [spans[0][0]]
    # Two processes load in half the time of four, where the CPUs are busy with it.
    return Trace(statistics.median(pauses) * 2 / len(found[0]), found)


def invent(noise: Noise, generator: np.random.Generator, *, sessions: int = 40, blocks: int = 24) -> Trace:
    """A trace of two processes a session."""
    shape = (sessions, 2, blocks, 2)
    luck = noise.between * generator.standard_normal((sessions, 2, 1, 1))
    luck = luck + 0.12 * (generator.random((sessions, 2, 1, 1)) < noise.unlucky)
    scatter = noise.within * generator.standard_t(3, size=shape) / np.sqrt(3)
    for block in range(1, blocks):
        fresh = np.sqrt(1 - noise.lasting**2) * scatter[:, :, block]
        scatter[:, :, block] = noise.lasting * scatter[:, :, block - 1] + fresh
    common = np.cumsum(noise.drift * generator.standard_normal((sessions, 1, blocks, 1)), axis=2)
    stolen = generator.random((sessions, 2, blocks, 1)) < noise.stolen
    # A block is a call for the first token and one for all, of both sides: about a fourth of it for each.
    times = 0.25 * noise.block_s * np.exp(luck + scatter + common + 0.26 * stolen)
    return Trace(
        noise.setup_s,
        [
            [
                [
                    _invented(*times[session, side, block], stolen=bool(stolen[session, side, block, 0]))
                    for block in range(blocks)
                ]
                for side in range(2)
            ]
            for session in range(sessions)
        ],
    )


def _invented(first_s: float, decode_s: float, *, stolen: bool) -> Sample:
    return Sample.model_construct(
        subject=0,
        session=0,
        block=0,
        position=0,
        started_s=0.0,
        prompt_tokens=64,
        batch=1,
        ttft_s=float(first_s),
        gaps_s=(float(decode_s),),
        total_s=float(decode_s),
        waited_s=0.0,
        lost_first_s=0.0,
        lost_decode_s=0.0,
        stolen_s=0.23 * float(first_s + decode_s) if stolen else 0.0,
        preemptions=0,
    )


def simulate_check(
    trace: Trace, *, slowdown: float, max_ratio: float, budget_s: float, seed: int
) -> tuple[Verdict, float]:
    """One check, as `serve.bench.measurement` and `serve.guard.regression` would make it, and what it takes.

    Args:
        trace: to draw from.
        slowdown: of the candidate: 1 is a model against itself.
        max_ratio: largest acceptable ratio.
        budget_s: of the clock that the drawn times move.
        seed: of the drawing; the same one with a longer budget continues the same check.
    """
    generator = np.random.default_rng(seed)
    now_s = 0.0
    budget = TimeBudget(budget_s, clock=lambda: now_s)
    samples: list[Sample] = []
    session = number = 0
    while True:
        size = plan_blocks(samples, budget.setup_blocks(), max_ratio=max_ratio)
        budget.begin_session()
        now_s += trace.setup_s
        budget.end_setup()
        drawn = trace.sessions[int(generator.integers(len(trace.sessions)))]
        sides = [drawn[int(place)] for place in generator.choice(len(drawn), 2, replace=False)]
        start, before = int(generator.integers(len(sides[0]))), len(samples)
        while True:
            for subject, factor in enumerate((1.0, slowdown)):
                own = sides[subject][(start + number) % len(sides[subject])]
                now_s += factor * own.wall_s
                samples.append(_slowed(own, factor, subject=subject, session=session, block=number, ended_s=now_s))
            number += 1
            budget.count_block()
            if budget.spent() or budget.session_is_over(
                size, counting_blocks(samples[before:]), session=session, wanted=FIRST_PAIRS
            ):
                break
        judged = judge_metrics(paired_blocks(samples), max_ratio=max_ratio, ended=False)
        if is_settled(judged) or budget.spent() or not budget.affords_session():
            return judge(samples, max_ratio=max_ratio), now_s
        session += 1


def _slowed(sample: Sample, factor: float, *, subject: int, session: int, block: int, ended_s: float) -> Sample:
    total_s = factor * sample.total_s
    return sample.model_copy(
        update={
            "subject": subject,
            "session": session,
            "block": block,
            "started_s": ended_s - total_s,
            "ttft_s": factor * sample.ttft_s,
            "gaps_s": tuple(factor * gap for gap in sample.gaps_s),
            "total_s": total_s,
            "lost_first_s": factor * sample.lost_first_s,
            "lost_decode_s": factor * sample.lost_decode_s,
        }
    )


def simulate(
    draw: Callable[[int], Trace], *, checks: int, slowdown: float, max_ratio: float, budget_s: float
) -> dict[str, Any]:
    """Many checks, counted.

    Args:
        draw: the trace of a check, by its number.
        checks: how many.
        slowdown: see `simulate_check`.
        max_ratio: see `simulate_check`.
        budget_s: see `simulate_check`.
    """
    outcomes: Counter[str] = Counter()
    seconds, pairs, continued = [], [], Counter[str]()
    budgets: list[float] = []
    for seed in range(checks):
        trace = draw(seed)
        verdict, took_s = simulate_check(trace, slowdown=slowdown, max_ratio=max_ratio, budget_s=budget_s, seed=seed)
        outcomes[verdict.outcome] += 1
        seconds.append(took_s)
        pairs.append(len(verdict.sessions))
        if verdict.settling_budget_s is not None:
            budgets.append(verdict.settling_budget_s)
            longer, _ = simulate_check(
                trace, slowdown=slowdown, max_ratio=max_ratio, budget_s=verdict.settling_budget_s, seed=seed
            )
            continued[longer.outcome] += 1
    return {
        "checks": checks,
        **{name: outcomes[name] for name in OUTCOMES},
        "seconds_median": round(statistics.median(seconds), 1),
        "seconds_longest": round(max(seconds), 1),
        "pairs_of_processes_median": statistics.median(pairs),
        "asked_for_a_longer_budget": len(budgets),
        "budget_asked_for_median": statistics.median(budgets) if budgets else None,
        "settled_by_it": len(budgets) - continued["inconclusive"],
        "settled_wrongly": continued["regression" if slowdown <= max_ratio else "pass"],
    }


def record(target: str, *, seconds: float, threads: int, processes: int = PROCESSES) -> Benchmark:
    """Measure processes of one model side by side, a dozen blocks for each set of them."""
    workload = make_workload(
        64, 16, repeats=BLOCKS, sessions=1000, separate_phases=True, turn_s=TURN_S, budget_s=seconds
    )
    return run_benchmark([parse_target(target)] * processes, options=RunOptions(threads=threads), workload=workload)


@command
def main(argv: list[str] | None = None) -> int:
    """Record or simulate, and print one JSON object."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.guard_simulation", description=(__doc__ or "").partition("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="measure a model beside itself")
    recording.add_argument("model", help="as python -m serve takes it")
    recording.add_argument("--output", type=Path, required=True, help="a JSON file")
    recording.add_argument("--seconds", type=float, default=240.0)
    recording.add_argument("--threads", type=int, default=1)
    recording.add_argument("--rivals", type=int, default=0, help="processes that disturb meanwhile")
    simulating = commands.add_parser("simulate", help="check again and again")
    simulating.add_argument("trace", type=Path, nargs="?", help="of `record`; or give --noise")
    simulating.add_argument("--noise", choices=sorted(NOISES), help="invented times")
    simulating.add_argument("--checks", type=int, default=100)
    simulating.add_argument("--slowdown", type=float, default=1.0, help="of the candidate (default: 1, the same)")
    simulating.add_argument("--max-ratio", type=float, default=1.05)
    simulating.add_argument("--budget", type=float, default=CHECK_S, help="seconds (default: that of a check)")
    options = parser.parse_args(argv)
    if options.command == "record":
        with rivals(options.rivals):
            found = record(options.model, seconds=options.seconds, threads=options.threads)
        write_document(options.output, found)
        summary = {"sessions": len(trace_of(found.samples).sessions), "written": str(options.output)}
    else:
        if (options.trace is None) == (options.noise is None):
            parser.error("give either a trace or --noise")
        trace = read_trace(options.trace) if options.trace else None
        summary = simulate(
            lambda seed: trace or invent(NOISES[options.noise], np.random.default_rng(seed)),
            checks=options.checks,
            slowdown=options.slowdown,
            max_ratio=options.max_ratio,
            budget_s=options.budget,
        )
    sys.stdout.write(json.dumps(summary, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
