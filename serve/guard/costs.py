"""Load time and memory, which no generation shows: judged where a user names a limit."""

from __future__ import annotations

from typing import Literal

from serve.bench.benchmark import Benchmark
from serve.bench.loading import LoadTimes, measure_loads
from serve.bench.statistics import Estimate
from serve.guard.sequential import MINIMUM, look_confidence, looks, signed_rank_ratio

Outcome = Literal["pass", "regression", "inconclusive"]
Judged = tuple[Outcome, Estimate]

MINIMUM_PROCESSES = 2
"""Pairs of processes whose memory must agree."""


def judge_memory(benchmark: Benchmark, *, max_ratio: float) -> Judged:
    """Highest resident memory of the candidate's processes over the reference's.

    Memory is no noise that averages out: every pair of processes has to lie on the same side of the limit.

    Args:
        benchmark: of a reference and a candidate.
        max_ratio: largest acceptable ratio.
    """
    reference, candidate = (subject.session_peaks_bytes for subject in benchmark.subjects)
    ratios = sorted(own / other for own, other in zip(candidate, reference, strict=True))
    middle = len(ratios) // 2
    median = (ratios[middle] + ratios[~middle]) / 2
    estimate = Estimate(median=median, low=ratios[0], high=ratios[-1], samples=len(ratios))
    if len(ratios) < MINIMUM_PROCESSES:
        return "inconclusive", estimate
    return _place(estimate, max_ratio), estimate


def check_load(benchmark: Benchmark, *, max_ratio: float, budget_s: float) -> Judged:
    """Load both sides in new processes until the ratio of their times is clear, or the time is over.

    Args:
        benchmark: of a reference and a candidate.
        max_ratio: largest acceptable ratio.
        budget_s: for this alone.
    """
    deployments = [subject.deployment for subject in benchmark.subjects]

    def enough(times: LoadTimes) -> bool:
        return judge_load(times, max_ratio=max_ratio, ended=False)[0] != "inconclusive"

    times = measure_loads(deployments, benchmark.options, budget_s=budget_s, enough=enough)
    return judge_load(times, max_ratio=max_ratio, ended=True)


def load_settling_budget_s(estimate: Estimate, *, budget_s: float) -> float | None:
    """Seconds for as many rounds of loading as can decide at all; None where there were so many.

    Args:
        estimate: of `check_load`, which has not decided.
        budget_s: what it had.
    """
    return None if estimate.samples >= MINIMUM else MINIMUM * budget_s / estimate.samples


def judge_load(times: LoadTimes, *, max_ratio: float, ended: bool) -> Judged:
    """Judge rounds of a reference and a candidate at the planned looks; see `serve.guard.sequential`."""
    reference, candidate = ([row[side] for row in times] for side in (0, 1))
    estimate = signed_rank_ratio(candidate, reference, confidence=look_confidence())
    for count in looks(len(times), ended=ended, first=MINIMUM):
        estimate = signed_rank_ratio(candidate[:count], reference[:count], confidence=look_confidence())
        outcome = _place(estimate, max_ratio)
        if outcome != "inconclusive":
            return outcome, estimate
    return "inconclusive", estimate


def _place(estimate: Estimate, max_ratio: float) -> Outcome:
    return "pass" if estimate.high <= max_ratio else "regression" if estimate.low > max_ratio else "inconclusive"
