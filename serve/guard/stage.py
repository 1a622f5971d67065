"""What `python -m serve check` does: one candidate against one reference, measured now or before."""

from __future__ import annotations

from pathlib import Path

from serve.bench.benchmark import Benchmark
from serve.bench.workload import Workload
from serve.guard.baseline import check_baseline
from serve.guard.regression import Verdict, check_regression, require_pass
from serve.runtimes.runtime import RunOptions
from shearling.errors import UsageError
from shearling.target import Target


def check_model(
    candidate: Target,
    *,
    reference: Target | None,
    baseline: Path | None,
    record: bool,
    allow_other_versions: bool,
    max_ratio: float,
    options: RunOptions,
    workload: Workload,
) -> tuple[Verdict, Benchmark]:
    """Pass, or fail with the verdict.

    Args:
        candidate: what may have become slower.
        reference: is measured beside it; see `check_regression`.
        baseline: its history, instead; see `check_baseline`, also for the rest.
        record: add this measurement to the history.
        allow_other_versions: of runtimes.
        max_ratio: largest acceptable time over the reference's.
        options: the same for both.
        workload: the same for both.

    Raises:
        UsageError: not exactly one of `reference` and `baseline`, or `record` without the latter.
        CheckFailed: slower, or inconclusive.
    """
    if record and baseline is None:
        raise UsageError("--record has nowhere to write", remedy="Give --baseline FILE")
    if reference is not None and baseline is None:
        verdict, benchmark = check_regression(
            candidate, reference, max_ratio=max_ratio, options=options, workload=workload
        )
    elif baseline is not None and reference is None:
        verdict, benchmark = check_baseline(
            candidate,
            baseline,
            max_ratio=max_ratio,
            options=options,
            workload=workload,
            record=record,
            allow_other_versions=allow_other_versions,
        )
    else:
        raise UsageError("a check needs one reference", remedy="Give either --against DIR or --baseline FILE")
    require_pass(verdict)
    return verdict, benchmark
