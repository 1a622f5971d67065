"""The `benchmark` artefact on disk: `benchmark.json`, and `benchmark.html` with the distributions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from serve.bench.benchmark import FILE, SCHEMA, Benchmark, run_benchmark
from serve.bench.page import write_page
from serve.bench.unfinished import FILE as UNFINISHED
from serve.bench.workload import DOCUMENT_BYTES, Workload, check_document_size
from serve.runtimes.runtime import RunOptions
from shearling.artefact import open_artefact, write_artefact
from shearling.strict_json import read_document, write_document
from shearling.target import Target

PAGE = "benchmark.html"


def run_into(
    path: Path,
    targets: Sequence[Target],
    *,
    options: RunOptions,
    workload: Workload,
    force: bool = False,
) -> Benchmark:
    """Measure, and write the artefact; an interrupted run keeps its finished blocks, and the same call continues it.

    Args:
        path: where the artefact will stand.
        targets: see `run_benchmark`.
        options: the same for all.
        workload: the same for all.
        force: replace what is there.

    Raises:
        OutputExists: `path` is taken and `force` is false.
        UsageError: so many samples could not be read again.
    """
    check_document_size(workload, deployments=len(targets))
    with write_artefact(
        path, kind="benchmark", seed=workload.seed, force=force, resumable=True, scratch=(UNFINISHED,)
    ) as draft:
        benchmark = run_benchmark(targets, options=options, workload=workload, unfinished=draft.directory)
        write_document(draft.directory / FILE, benchmark)
        write_page(draft.directory / PAGE, benchmark)
        draft.details["measured"] = {
            subject.deployment.label: subject.deployment.weights_sha256 for subject in benchmark.subjects
        }
    return benchmark


def read_benchmark(path: Path) -> Benchmark:
    """Read a `benchmark` artefact, verified, or its `benchmark.json` alone.

    Raises:
        ArtefactError: missing, corrupt, or not a benchmark.
    """
    if path.is_dir():
        open_artefact(path, kind="benchmark")
        path = path / FILE
    return read_document(path, Benchmark, schema=SCHEMA, max_bytes=DOCUMENT_BYTES)
