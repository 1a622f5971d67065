"""Two benchmarks of different times: what changed, as far as separate runs can tell."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

from serve.bench.benchmark import METRICS, Benchmark, block_sessions, block_values
from serve.bench.environment import differing_versions
from serve.bench.statistics import Estimate, independent_ratio
from shearling.errors import UsageError
from shearling.strict_json import Document

WORK = ("prompt_tokens", "new_tokens", "batch", "trace", "separate_phases")
OPTIONS = ("device", "precision", "threads", "hint", "huge_pages", "genai")


class ComparedSubject(Document):
    """The deployments at one place of both benchmarks.

    Attributes:
        ratios: second over first, by metric; `tokens_per_s` above 1 is faster, times above 1 are slower.
        bytes_ratio: of the weights on disk.
        memory_ratio: of peak memory.
    """

    first: str
    second: str
    ratios: dict[str, Estimate]
    bytes_ratio: float
    memory_ratio: float


class BenchmarkComparison(Document):
    """What two benchmarks say of each other.

    Attributes:
        same_machine: CPU, flags and CPU count agree.
        sessions: of the benchmark with fewer.
        differing_versions: package, or label of a deployment whose runtime differs -> (first, second).
    """

    same_machine: bool
    sessions: int
    differing_versions: dict[str, tuple[str, str]]
    subjects: tuple[ComparedSubject, ...]


def compare_benchmarks(
    first: Benchmark, second: Benchmark, *, allow_other_machine: bool = False
) -> BenchmarkComparison:
    """Compare the deployments at equal places.

    Args:
        first: the older one, by convention.
        second: measured with the same workload and options.
        allow_other_machine: compare although the machines differ; ratios then mix machine and model.

    Raises:
        UsageError: other workload, options, number of deployments, or machine.
    """
    require_same_work(first, second)
    if len(first.subjects) != len(second.subjects):
        raise UsageError(
            f"{len(first.subjects)} and {len(second.subjects)} deployments cannot be paired",
            remedy="Measure the same directories",
        )
    same_machine = first.environment.machine_id == second.environment.machine_id
    if not same_machine and not allow_other_machine:
        raise UsageError(
            f"measured on different machines ({first.environment.cpu}; {second.environment.cpu})",
            remedy="Measure both on one machine, best in one run: python -m serve bench A B; or --allow-other-machine",
        )
    # In an environment of its own a model has other versions than those of the one that asks.
    runtimes = {
        new.deployment.label: (old.facts.runtime, new.facts.runtime)
        for old, new in zip(first.subjects, second.subjects, strict=True)
        if old.facts.runtime != new.facts.runtime
    }
    return BenchmarkComparison(
        same_machine=same_machine,
        sessions=min(first.sessions, second.sessions),
        differing_versions={**differing_versions(first.environment.versions, second.environment.versions), **runtimes},
        subjects=tuple(_compare_subject(first, second, index) for index in range(len(first.subjects))),
    )


def require_same_work(first: Benchmark, second: Benchmark) -> None:
    """Refuse what was measured with other flags; more blocks, or another seed, are the same work, unless they are of
    other prompts of a trace.

    Raises:
        UsageError: names what differs.
    """
    differing = [
        name
        for name in WORK
        if getattr(first.workload, name) != getattr(second.workload, name)
        and (first.workload.is_decided_by(name) or second.workload.is_decided_by(name))
    ]
    differing += [name for name in OPTIONS if getattr(first.options, name) != getattr(second.options, name)]
    if differing:
        raise UsageError(f"measured with another {', '.join(differing)}", remedy="Measure all with the same flags")
    prompts = len(first.workload.trace)
    if _shares_of_prompts(first) != _shares_of_prompts(second):
        raise UsageError(
            f"{first.blocks} and {second.blocks} blocks measured other prompts of the trace, which has {prompts}",
            remedy=f"Measure all with --repeats {prompts}, or a multiple of it",
        )


def _shares_of_prompts(benchmark: Benchmark) -> dict[int, Fraction]:
    """By the place in the trace, how much of what was measured a prompt is."""
    prompts, blocks = len(benchmark.workload.trace), benchmark.blocks
    places = Counter(block % prompts for block in range(blocks)) if prompts else Counter[int]()
    return {place: Fraction(count, blocks) for place, count in places.items()}


def _compare_subject(first: Benchmark, second: Benchmark, index: int) -> ComparedSubject:
    old, new = first.subjects[index], second.subjects[index]
    return ComparedSubject(
        first=old.deployment.label,
        second=new.deployment.label,
        ratios={
            name: independent_ratio(
                block_values(second.samples, index, value),
                block_values(first.samples, index, value),
                groups=(block_sessions(second.samples, index), block_sessions(first.samples, index)),
            )
            for name, value in METRICS.items()
        },
        bytes_ratio=new.deployment.weights_bytes / old.deployment.weights_bytes,
        memory_ratio=new.peak_memory_bytes / old.peak_memory_bytes,
    )
