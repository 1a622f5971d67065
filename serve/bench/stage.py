"""What the measuring commands do: everything is refused that can be, then measured, then written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from serve.bench.benchmark import Benchmark, run_benchmark
from serve.bench.benchmark_artefact import read_benchmark, run_into
from serve.bench.concurrency import LoadCurve, LoadWork, measure_load, write_load_curve
from serve.bench.page import write_history
from serve.bench.screen import benchmark_screen
from serve.bench.workload import Workload
from serve.runtimes.runtime import RunOptions
from shearling.artefact import check_destination
from shearling.console import log
from shearling.destination import require_writable
from shearling.errors import OutputExists, UsageError
from shearling.target import Target

MOST_REQUESTS = 4096
"""At once: each has a cache of its own."""


def bench_models(
    targets: Sequence[Target], *, options: RunOptions, workload: Workload, output: Path | None, force: bool
) -> Benchmark:
    """Measure models side by side, and write the artefact if there is an `output`.

    Without one an interrupted run shows what it has measured, because nothing keeps it.

    Raises:
        ShearlingError: see `run_benchmark` and `run_into`.
    """
    if output is not None:
        return run_into(output, targets, options=options, workload=workload, force=force)
    return run_benchmark(targets, options=options, workload=workload, on_interrupt=_show_unfinished)


def _show_unfinished(benchmark: Benchmark) -> None:
    # The names in it are escaped.
    log.print(benchmark_screen(benchmark), markup=True)
    log.print("these are the finished blocks; they are written nowhere: --output would keep them, and continue")


def draw_load_curve(
    target: Target, work: LoadWork, *, options: RunOptions, output: Path | None, force: bool
) -> LoadCurve:
    """Measure many requests at once, and write the artefact if there is an `output`; see `measure_load`.

    Raises:
        OutputExists: before anything is measured.
    """
    if output is not None:
        check_destination(output, kind="benchmark", force=force)
    curve = measure_load(target, work, options=options)
    if output is not None:
        write_load_curve(output, curve, force=force)
    return curve


def draw_history(benchmarks: Sequence[Path], *, output: Path, force: bool) -> None:
    """Draw benchmark artefacts, or their documents, by their date.

    Raises:
        OutputExists: there is a file, and `force` is false; or it lies in what it would show.
        ShearlingError: see `read_benchmark` and `write_history`.
    """
    require_writable(output, whole=True)
    if any(output.resolve().is_relative_to(path.resolve()) for path in benchmarks):
        raise OutputExists("lies in what it is made from", where=output, remedy="Choose another place")
    if output.exists() and not force:
        raise OutputExists("the output exists", where=output, remedy="Choose another, or replace it with --force")
    write_history(output, [read_benchmark(path) for path in benchmarks])


def parse_concurrency(text: str) -> list[int]:
    """Read `1,2,4,8`.

    Raises:
        UsageError: something in it is no number, or more than `MOST_REQUESTS`.
    """
    parts = text.split(",")
    # No more digits than the largest has: beyond thousands `int` raises.
    if not all(part.strip().isdecimal() and len(part.strip()) <= len(str(MOST_REQUESTS)) for part in parts):
        raise UsageError(
            f"cannot read the numbers of requests {text!r:.60}", remedy="Give --concurrency 1,2,4,8, for example"
        )
    counts = [int(part) for part in parts]
    if max(counts) > MOST_REQUESTS:
        raise UsageError(f"{max(counts)} requests at once", remedy=f"Give at most {MOST_REQUESTS}")
    return counts
