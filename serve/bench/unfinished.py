"""What an interrupted benchmark has measured so far: whole blocks, kept beside its output until the same command
continues it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pydantic

from serve.bench.measurement import MeasuredBlocks, Sample
from serve.bench.worker_process import LoadReport, ProcessReport
from serve.bench.workload import DOCUMENT_BYTES, Workload
from serve.runtimes.deployment import Deployment
from serve.runtimes.runtime import RunOptions
from shearling.console import log
from shearling.errors import ArtefactError
from shearling.strict_json import Document, read_document, write_document

FILE = "unfinished.json"
SCHEMA = "shearling.unfinished_benchmark/1"


class Unfinished(Document):
    """The content of `unfinished.json`: what was asked for, and what there is of it."""

    schema_: Literal["shearling.unfinished_benchmark/1"] = pydantic.Field(
        "shearling.unfinished_benchmark/1", alias="schema"
    )
    deployments: tuple[Deployment, ...]
    options: RunOptions
    workload: Workload
    loads: tuple[tuple[LoadReport, ...], ...]
    reports: tuple[tuple[ProcessReport, ...], ...]
    samples: tuple[Sample, ...]


def keep(
    directory: Path,
    deployments: Sequence[Deployment],
    options: RunOptions,
    workload: Workload,
    measurement: MeasuredBlocks,
) -> None:
    """Write what there is, atomically."""
    document = Unfinished(
        deployments=tuple(deployments),
        options=options,
        workload=workload,
        loads=tuple(map(tuple, measurement.loads)),
        reports=tuple(map(tuple, measurement.reports)),
        samples=tuple(measurement.samples),
    )
    write_document(directory / FILE, document)


def continue_from(
    directory: Path, deployments: Sequence[Deployment], options: RunOptions, workload: Workload
) -> MeasuredBlocks | None:
    """What an interrupted run of exactly the same has measured; None where there is nothing, or it was asked
    something else.
    """
    if not (directory / FILE).is_file():
        return None
    try:
        found = read_document(directory / FILE, Unfinished, schema=SCHEMA, max_bytes=DOCUMENT_BYTES)
    except ArtefactError as error:
        log.print(f"what an interrupted run left is not usable, and is measured again: {error}")
        return None
    if (found.deployments, found.options, found.workload) != (tuple(deployments), options, workload):
        log.print("an interrupted run measured something else here: measuring anew")
        return None
    log.print(f"continuing after {len(found.samples) // len(deployments)} finished blocks")
    return MeasuredBlocks(
        [list(loads) for loads in found.loads], [list(reports) for reports in found.reports], list(found.samples)
    )


def forget(directory: Path) -> None:
    """Remove it, once the benchmark is complete."""
    (directory / FILE).unlink(missing_ok=True)
