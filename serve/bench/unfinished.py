"""What an interrupted benchmark has measured so far: whole blocks, kept beside its output until the same command
continues it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pydantic

from serve.bench.environment import Environment, describe_environment, differing_versions
from serve.bench.measurement import MeasuredBlocks, Sample
from serve.bench.worker_process import LoadReport, ProcessReport
from serve.bench.workload import DOCUMENT_BYTES, Workload
from serve.runtimes.deployment import Deployment
from serve.runtimes.runtime import RunOptions
from shearling.console import log
from shearling.errors import ArtefactError
from shearling.registry.runtimes import RUNTIMES
from shearling.strict_json import Document, read_document, write_document
from shearling.virtual_environment import installed_version

FILE = "unfinished.json"
SCHEMA = "shearling.unfinished_benchmark/2"


class Unfinished(Document):
    """The content of `unfinished.json`: what was asked for, where it was measured, and what there is of it.

    Attributes:
        environment: its versions include those of the runtimes that are installed apart.
    """

    schema_: Literal["shearling.unfinished_benchmark/2"] = pydantic.Field(
        "shearling.unfinished_benchmark/2", alias="schema"
    )
    deployments: tuple[Deployment, ...]
    options: RunOptions
    workload: Workload
    environment: Environment
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
        environment=_environment(_installed_apart(deployments)),
        loads=tuple(map(tuple, measurement.loads)),
        reports=tuple(map(tuple, measurement.reports)),
        samples=tuple(measurement.samples),
    )
    write_document(directory / FILE, document)


def continue_from(
    directory: Path, deployments: Sequence[Deployment], options: RunOptions, workload: Workload
) -> MeasuredBlocks | None:
    """What an interrupted run of exactly the same has measured; None where there is nothing, or it was asked
    something else, or measured it elsewhere or with other versions.
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
    elsewhere = _difference(found.environment, _environment(_installed_apart(deployments)))
    if elsewhere is not None:
        log.print(f"an interrupted run measured {elsewhere}: measuring anew")
        return None
    log.print(f"continuing after {len(found.samples) // len(deployments)} finished blocks")
    return MeasuredBlocks(
        [list(loads) for loads in found.loads], [list(reports) for reports in found.reports], list(found.samples)
    )


def _installed_apart(deployments: Sequence[Deployment]) -> frozenset[tuple[str, Path]]:
    """Distributions that are imported from environments of their own."""
    return frozenset(
        (re.split(r"[^\w.-]", requirement.lstrip("'"), maxsplit=1)[0], deployment.environment)
        for deployment in deployments
        if deployment.environment is not None
        for requirement in RUNTIMES.get(deployment.format).packages.values()
    )


# Asked for with every block: what changes while a process runs is found by the next one.
@functools.cache
def _environment(installed_apart: frozenset[tuple[str, Path]]) -> Environment:
    environment = describe_environment()
    apart = {f"{name} in {place}": installed_version(name, place) or "absent" for name, place in installed_apart}
    return environment.model_copy(update={"versions": environment.versions | apart})


def _difference(earlier: Environment, now: Environment) -> str | None:
    if earlier.machine_id != now.machine_id:
        return f"on another machine ({earlier.cpu}, {earlier.usable_cpus} CPUs)"
    changed = differing_versions(earlier.versions, now.versions)
    told = "; ".join(f"{name} {before}, now {after}" for name, (before, after) in changed.items())
    return f"other versions ({told})" if told else None
