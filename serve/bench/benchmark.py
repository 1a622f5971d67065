"""One interleaved run: its samples, its environment, and what they say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import pydantic

from serve.bench.environment import Environment, describe_environment
from serve.bench.measurement import Enough, MeasuredBlocks, Sample, SessionPlan, measure
from serve.bench.statistics import Estimate, bootstrap_median, paired_ratio, percentile
from serve.bench.unfinished import continue_from, keep
from serve.bench.workload import Workload
from serve.runtimes.deployment import Deployment, find_deployment
from serve.runtimes.device import check_device
from serve.runtimes.known_crash import avoid_known_crash
from serve.runtimes.runtime import RunOptions, RuntimeFacts
from serve.runtimes.visiting import plan_visits
from shearling.artefact import utc_now
from shearling.command_line import Terminated
from shearling.console import log
from shearling.errors import UsageError
from shearling.strict_json import Document
from shearling.target import Target

SCHEMA = "shearling.benchmark/1"
FILE = "benchmark.json"

DEFINITIONS = {
    "ttft_s": "time to first token: from the call, with token ids as input, to the first new token",
    "tpot_s": "time per output token: mean gap between tokens after the first, of one generation",
    "tokens_per_s": "decode speed of the whole batch: batch / tpot_s",
    "total_s": "the whole generation call",
    "load_s": (
        "reading and compiling model and tokenizer after the runtime's imports; the files are "
        "in the page cache, for they were just hashed"
    ),
    "peak_memory_bytes": (
        "highest resident memory (VmHWM) of a process that ran nothing else, Python, runtime and mapped files included"
    ),
    "private_memory_bytes": (
        "of it at the end what no file backs (RssAnon): the system cannot drop it; equal models have equal figures"
    ),
    "memory_before_bytes": "resident memory of that process with the runtime imported, before the model",
    "ratios": "median over blocks of this deployment's time over the first one's in the same block; below 1 is faster",
    "intervals": "95 % percentile bootstrap of the median: processes are drawn first, and their blocks within them",
}

METRICS: dict[str, Callable[[Sample], float]] = {
    "ttft_s": lambda sample: sample.ttft_s,
    "tpot_s": lambda sample: sample.tpot_s,
    "tokens_per_s": lambda sample: sample.batch / sample.tpot_s,
    "total_s": lambda sample: sample.total_s,
}
RATIOS = ("ttft_s", "tpot_s", "total_s")


class BenchmarkSubject(Document):
    """One deployment and what was found out about it.

    Attributes:
        metrics: by the names of `DEFINITIONS`.
        gap_percentiles_s: p50, p90, p99 of all gaps between tokens.
        ratios: to the first deployment of the run; empty for that one.
        session_peaks_bytes: `peak_memory_bytes` of each session's process.
        huge_shares: of each session's process: in huge pages, of what could be there.
    """

    deployment: Deployment
    facts: RuntimeFacts
    import_s: Estimate
    load_s: Estimate
    memory_before_bytes: int
    peak_memory_bytes: int
    private_memory_bytes: int
    huge_memory_bytes: int
    cpus: tuple[int, ...]
    nice: int
    metrics: dict[str, Estimate]
    gap_percentiles_s: dict[str, float]
    ratios: dict[str, Estimate]
    session_peaks_bytes: tuple[int, ...] = ()
    huge_shares: tuple[float, ...] = ()


class Benchmark(Document):
    """The content of `benchmark.json`.

    Attributes:
        options: as they were; `changes` says where they are not those that were asked for.
    """

    schema_: Literal["shearling.benchmark/1"] = pydantic.Field("shearling.benchmark/1", alias="schema")
    created: str
    options: RunOptions
    workload: Workload
    environment: Environment
    changes: tuple[str, ...] = ()
    definitions: dict[str, str]
    subjects: tuple[BenchmarkSubject, ...]
    samples: tuple[Sample, ...]

    @property
    def blocks(self) -> int:
        """How many were measured."""
        return len({sample.block for sample in self.samples})

    @property
    def sessions(self) -> int:
        """How many processes of each deployment were measured."""
        return len({sample.session for sample in self.samples})

    def huge_shares(self, names: Sequence[str]) -> dict[str, float]:
        """By the name of each deployment, the least share that a process of it got of the huge pages that it could use.

        Nothing where they were not asked for, or of benchmarks of before it was kept.
        """
        if not self.options.huge_pages:
            return {}
        pairs = zip(names, self.subjects, strict=True)
        return {name: min(subject.huge_shares) for name, subject in pairs if subject.huge_shares}


def run_benchmark(
    targets: Sequence[Target],
    *,
    options: RunOptions,
    workload: Workload,
    enough: Enough | None = None,
    plan: SessionPlan | None = None,
    unfinished: Path | None = None,
    require: Callable[[Sequence[Deployment]], None] | None = None,
    on_interrupt: Callable[[Benchmark], None] | None = None,
) -> Benchmark:
    """Verify, check the device, measure interleaved, and summarise.

    Args:
        targets: what to measure; the first is what the others are compared with.
        options: the same for all.
        workload: the same for all.
        enough: see `measure`.
        plan: see `measure`.
        unfinished: a directory that keeps the finished blocks while it runs; where it holds those of the same
            request, they count.
        require: refuses what was found, before anything is loaded.
        on_interrupt: gets what the finished blocks say, before Ctrl-C or SIGTERM is raised on.

    Raises:
        UsageError: the workload does not fit a context.
        ArtefactError: a directory cannot be used.
        DeviceUnavailable: before anything is loaded.
    """
    if not targets:
        raise UsageError("nothing to measure", remedy="Give at least one directory")
    deployments = find_deployments(targets, options)
    if require is not None:
        require(deployments)
    deployments, avoided = avoid_known_crash(deployments, options)
    changes = (avoided,) if avoided else ()
    for change in changes:
        log.print(change)
    environment = describe_environment()
    earlier = continue_from(unfinished, deployments, options, workload) if unfinished else None
    measurement = earlier or MeasuredBlocks([[] for _ in deployments], [[] for _ in deployments])

    def on_block(measurement: MeasuredBlocks) -> None:
        if unfinished:
            keep(unfinished, deployments, options, workload, measurement)

    def summary() -> Benchmark:
        return summarise(
            deployments, measurement, options=options, workload=workload, environment=environment, changes=changes
        )

    try:
        measure(deployments, options, workload, enough=enough, plan=plan, result=measurement, on_block=on_block)
    except (KeyboardInterrupt, Terminated):
        if measurement.samples and on_interrupt is not None:
            on_interrupt(summary())
        raise
    return summary()


def find_deployments(targets: Sequence[Target], options: RunOptions) -> list[Deployment]:
    """Find and verify what is to be measured, and check that its runtime and its device are there.

    Raises:
        ArtefactError: a directory cannot be used.
        EnvironmentFault: see `check_device` and `plan_visits`.
    """
    found = plan_visits([find_deployment(target, device=options.device, visits=True) for target in targets], options)
    ours = {(item.format, item.environment) for item in found if item.engine is None}
    for model_format, runtime_environment in ours:
        check_device(model_format, options.device, environment=runtime_environment)
    return found


def summarise(
    deployments: Sequence[Deployment],
    measurement: MeasuredBlocks,
    *,
    options: RunOptions,
    workload: Workload,
    environment: Environment,
    changes: Sequence[str] = (),
) -> Benchmark:
    """Statistics of a measurement; see `DEFINITIONS`."""
    subjects = tuple(
        _summarise_subject(index, deployment, measurement, seed=workload.seed)
        for index, deployment in enumerate(deployments)
    )
    return Benchmark(
        created=utc_now(),
        options=options,
        workload=workload,
        environment=environment,
        changes=tuple(changes),
        definitions=DEFINITIONS,
        subjects=subjects,
        samples=tuple(measurement.samples),
    )


def block_values(samples: Sequence[Sample], subject: int, value: Callable[[Sample], float]) -> list[float]:
    """One value of one subject, in the order of blocks."""
    return [value(sample) for sample in _blocks(samples, subject)]


def block_sessions(samples: Sequence[Sample], subject: int) -> list[int]:
    """The session of each of `block_values`: which process it is of."""
    return [sample.session for sample in _blocks(samples, subject)]


def _blocks(samples: Sequence[Sample], subject: int) -> list[Sample]:
    return sorted((sample for sample in samples if sample.subject == subject), key=lambda sample: sample.block)


def _summarise_subject(
    index: int, deployment: Deployment, measurement: MeasuredBlocks, *, seed: int
) -> BenchmarkSubject:
    samples, loads, reports = measurement.samples, measurement.loads[index], measurement.reports[index]
    gaps = [gap for sample in samples if sample.subject == index for gap in sample.gaps_s]
    sessions = block_sessions(samples, index)
    ratios = {}
    if index > 0:
        pairs = {name: [block_values(samples, subject, METRICS[name]) for subject in (index, 0)] for name in RATIOS}
        ratios = {
            name: paired_ratio(own, reference, groups=sessions, seed=seed) for name, (own, reference) in pairs.items()
        }
    return BenchmarkSubject(
        deployment=deployment,
        facts=loads[0].facts,
        import_s=bootstrap_median([load.import_s for load in loads], seed=seed),
        load_s=bootstrap_median([load.load_s for load in loads], seed=seed),
        memory_before_bytes=max(load.memory_before_bytes for load in loads),
        peak_memory_bytes=max(report.peak_bytes for report in reports),
        private_memory_bytes=max(report.private_bytes for report in reports),
        huge_memory_bytes=max(report.huge_bytes for report in reports),
        cpus=reports[-1].cpus,
        nice=reports[-1].nice,
        metrics={
            name: bootstrap_median(block_values(samples, index, value), groups=sessions, seed=seed)
            for name, value in METRICS.items()
        },
        gap_percentiles_s={f"p{share}": percentile(gaps, share / 100) for share in (50, 90, 99)},
        ratios=ratios,
        session_peaks_bytes=tuple(report.peak_bytes for report in reports),
        huge_shares=tuple(report.huge_share for report in reports),
    )
