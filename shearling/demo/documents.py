"""What the demo reads of the documents that other stages wrote: the fields that it shows, validated, and no more.

The stage that writes a document owns it, and its class; a demo that imports no stage sees a part of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeVar

import pydantic

from shearling.artefact import open_artefact
from shearling.elastic.subnet import read_subnet
from shearling.strict_json import Document, parse_json, read_document, validate_document

TRAINING_LOG = "training_log.jsonl"
JOURNAL = "journal.jsonl"
FRONT = "pareto.json"
BEST = "best.json"
BENCHMARK = "benchmark.json"
EXPORT_REPORT = "report.json"

ViewT = TypeVar("ViewT", bound="View")


class View(Document):
    """Part of a document; its other fields are left to those who own it."""

    model_config = pydantic.ConfigDict(extra="ignore")


class Spread(View):
    """A median and its 95 % interval."""

    median: float
    low: float
    high: float


class WorkloadView(View):
    """What a benchmark asked for, in tokens."""

    prompt_tokens: int
    new_tokens: int


class EnvironmentView(View):
    """The machine of a benchmark."""

    cpu: str
    usable_cpus: int


class DeploymentView(View):
    """A model of a benchmark; its label is the path as the command was given it."""

    label: str
    weights_bytes: int


class FactsView(View):
    """What ran a model of a benchmark, with its version, and what was set for it."""

    runtime: str
    settings: dict[str, str]


class SubjectView(View):
    """What a benchmark found out about a model; `ratios` are to the first one, which has none."""

    deployment: DeploymentView
    facts: FactsView
    metrics: dict[str, Spread]
    ratios: dict[str, Spread]


class BenchmarkView(View):
    """Of `benchmark.json`."""

    workload: WorkloadView
    environment: EnvironmentView
    subjects: tuple[SubjectView, ...]

    @property
    def by_label(self) -> dict[str, SubjectView]:
        """The path that the command was given -> what it found."""
        return {subject.deployment.label: subject for subject in self.subjects}


class ForwardTimeView(View):
    """One classifier; its speed-up over the first one."""

    directory: str
    ms: float
    speedup: float
    low: float
    high: float


class ForwardView(View):
    """Of what `python -m serve forward --json` prints."""

    tokens: int
    times: tuple[ForwardTimeView, ...]


class EvaluationView(View):
    """A line of the journal of a search.

    Attributes:
        i: its number.
        part: "explored"; lines of other parts measure the same sub-networks on other rows.
        cached: the same sub-network stands on an earlier line.
    """

    i: int
    id: str
    accuracy: float
    adapter_params: int
    part: Literal["explored", "raced", "held_back"] = "explored"
    cached: bool


class FrontPointView(View):
    """A line of the journal that no other one dominates."""

    row: int


class FrontView(View):
    """Of `pareto.json`."""

    points: tuple[FrontPointView, ...]


class TrainingLogView(View):
    """A line of the training log; the closing one has no loss."""

    step: int
    loss: float | None = None


class ExportView(View):
    """Of an export's `report.json`.

    Attributes:
        macs_m: of one forward over 256 tokens, millions.
    """

    parameters: int
    macs_m: float


def read_benchmark(directory: Path) -> BenchmarkView:
    """A `benchmark` artefact, verified."""
    open_artefact(directory, kind="benchmark")
    return read_document(directory / BENCHMARK, BenchmarkView, schema="shearling.benchmark/1")


def read_forward(path: Path) -> ForwardView:
    """What `python -m serve forward --json` printed."""
    return read_document(path, ForwardView)


def read_export(directory: Path) -> ExportView:
    """The report of an `export` artefact."""
    return read_document(directory / EXPORT_REPORT, ExportView, schema="shearling.export_report/2")


def read_evaluations(search: Path) -> list[EvaluationView]:
    """Every evaluation of a search."""
    return list(_read_lines(search / JOURNAL, EvaluationView))


def read_front(search: Path) -> set[int]:
    """Journal rows on the Pareto front."""
    front = read_document(search / FRONT, FrontView, schema="shearling.pareto/1")
    return {point.row for point in front.points}


def read_best(search: Path) -> str:
    """Identifier of the sub-network that was chosen."""
    return read_subnet(search / BEST).id


def read_losses(super_adapter: Path) -> tuple[tuple[int, float], ...]:
    """Step and loss, as far as the training told them."""
    lines = _read_lines(super_adapter / TRAINING_LOG, TrainingLogView)
    return tuple((line.step, line.loss) for line in lines if line.loss is not None)


def _read_lines(path: Path, view: type[ViewT]) -> Iterator[ViewT]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            where = f"{path}, line {number}"
            yield validate_document(parse_json(line, where=where), view, where=where)
