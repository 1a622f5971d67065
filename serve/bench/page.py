"""Benchmarks as pages that people can look at: every sample a dot; no script, no external resource."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from serve.bench.benchmark import METRICS, Benchmark, block_sessions, block_values
from serve.bench.comparison import require_same_work
from serve.bench.screen import doubt_of_processes, doubt_of_trace, short_names
from serve.bench.statistics import bootstrap_median
from serve.bench.strip_chart import Chart, ChartRow, strip_chart
from shearling.errors import UsageError
from shearling.page import render_page
from shearling.strict_json import write_text

TEMPLATE = Path(__file__).with_name("page.html.jinja")
CHARTED = {
    "ttft_s": "Time to first token, ms",
    "tpot_s": "Time per output token, ms",
    "total_s": "Whole generation, ms",
}


def write_page(path: Path, benchmark: Benchmark) -> None:
    """The distributions of one benchmark: times, all gaps between tokens, ratios within blocks."""
    names = short_names([subject.deployment.label for subject in benchmark.subjects])
    charts = [
        strip_chart(title, [_times(benchmark, index, name, metric) for index, name in enumerate(names)])
        for metric, title in CHARTED.items()
    ]
    rows = [_gaps(benchmark, index, name) for index, name in enumerate(names)]
    charts.append(strip_chart("Every gap between two tokens, ms", rows))
    if len(names) > 1:
        charts.append(
            strip_chart(
                f"Time per token over that of {names[0]}, within each block",
                [_ratios(benchmark, names, i) for i in range(1, len(names))],
            )
        )
    work, environment, blocks = benchmark.workload, benchmark.environment, benchmark.blocks
    prompts = work.trace_in_words(blocks) if work.trace else f"{work.prompt_tokens} random prompt tokens"
    notes = [
        f"{benchmark.created}. {environment.cpu}, {environment.usable_cpus} CPUs, load "
        f"{environment.load_average}, {environment.system}.",
        f"{prompts}, {work.new_tokens_in_words(blocks)} new tokens, batch {work.batch}. A dot is one block; the bar is "
        "the 95 % interval of the median.",
        *doubt_of_processes(benchmark.sessions),
        *doubt_of_trace(benchmark),
        *(
            f"{name}: {subject.facts.runtime}, {subject.facts.provider}, {subject.facts.precision}; "
            f"times from {subject.facts.timing_source}."
            for name, subject in zip(names, benchmark.subjects, strict=True)
        ),
    ]
    _render(path, title="Benchmark", notes=notes, charts=charts)


def write_history(path: Path, benchmarks: Sequence[Benchmark]) -> None:
    """Benchmarks of one machine, one workload and the same options by their date: has it become slower?

    Raises:
        UsageError: they are of different machines, work or options.
    """
    ordered = sorted(benchmarks, key=lambda benchmark: benchmark.created)
    if len({benchmark.environment.machine_id for benchmark in ordered}) > 1:
        raise UsageError("these benchmarks are of different machines", remedy="A history is of one machine")
    for benchmark in ordered[1:]:
        require_same_work(ordered[0], benchmark)
    charts = []
    for metric, title in CHARTED.items():
        rows = [
            _times(benchmark, index, f"{benchmark.created[:16]} {name}", metric)
            for benchmark in ordered
            for index, name in enumerate(short_names([subject.deployment.label for subject in benchmark.subjects]))
        ]
        charts.append(strip_chart(title, rows))
    notes = [
        f"{ordered[0].environment.cpu}. Nothing here ran side by side: drift of the machine between "
        "the dates is inside these figures.",
        *doubt_of_processes(min(benchmark.sessions for benchmark in ordered)),
    ]
    _render(path, title="History", notes=notes, charts=charts)


def _times(benchmark: Benchmark, index: int, name: str, metric: str) -> ChartRow:
    values = [1e3 * value for value in block_values(benchmark.samples, index, METRICS[metric])]
    sessions = block_sessions(benchmark.samples, index)
    return ChartRow(name, values, bootstrap_median(values, groups=sessions, seed=benchmark.workload.seed))


def _gaps(benchmark: Benchmark, index: int, name: str) -> ChartRow:
    gaps = [
        (1e3 * gap, sample.session) for sample in benchmark.samples if sample.subject == index for gap in sample.gaps_s
    ]
    values, sessions = [gap for gap, _ in gaps], [session for _, session in gaps]
    return ChartRow(name, values, bootstrap_median(values, groups=sessions))


def _ratios(benchmark: Benchmark, names: Sequence[str], index: int) -> ChartRow:
    sides = [block_values(benchmark.samples, subject, METRICS["tpot_s"]) for subject in (index, 0)]
    return ChartRow(
        names[index],
        [own / reference for own, reference in zip(*sides, strict=True)],
        benchmark.subjects[index].ratios["tpot_s"],
    )


def _render(path: Path, *, title: str, notes: Sequence[str], charts: Sequence[Chart]) -> None:
    write_text(path, render_page(TEMPLATE, title=title, notes=notes, charts=charts))
