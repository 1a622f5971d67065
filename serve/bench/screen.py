"""Benchmarks as tables that need no manual."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from serve.bench.benchmark import Benchmark, BenchmarkSubject
from serve.bench.comparison import BenchmarkComparison
from serve.bench.concurrency import LoadCurve
from serve.bench.forward import ForwardTime
from serve.bench.huge_pages import doubt_of_huge_pages
from serve.bench.statistics import CONFIDENCE, FEWEST_PROCESSES, Estimate
from serve.visitor.llama_cpp_build import LEFT_OUT

MIB = 2**20
FEWEST = {"p50": 1, "p90": 10, "p99": 100}
"""Requests that a quantile needs: of fewer it is no more than the largest."""
AROUND_THE_LOOP = ("python", "numpy")
"""What a model in another environment is measured with, beside its runtime."""


def benchmark_screen(benchmark: Benchmark, *, output: Path | None = None, judged: bool = False) -> RenderableType:
    """Two tables, speed and cost, and how they were measured.

    Args:
        benchmark: that was measured.
        output: where it was written.
        judged: a verdict follows, which has intervals of its own, and other options than `bench`.
    """
    names = short_names([subject.deployment.label for subject in benchmark.subjects])
    lines = [*_how(benchmark), *_disturbances(benchmark, names)]
    lines += doubt_of_trace(benchmark, told="") if judged else _doubts(benchmark, names)
    if output is not None:
        lines.append(f"Written: {output}")
    return Group(
        _speed_table(benchmark, names), _cost_table(benchmark.subjects, names), Text("\n".join(lines), style="dim")
    )


def comparison_screen(comparison: BenchmarkComparison) -> RenderableType:
    """A table, and what weakens it."""
    table = Table(title="Second against first", title_justify="left")
    table.add_column("model", overflow="fold")
    for heading in ("first token\nspeed", "decode\nspeed", "peak memory", "weights"):
        table.add_column(heading, justify="right", no_wrap=True)
    for subject in comparison.subjects:
        name = subject.first if subject.first == subject.second else f"{subject.first}\n-> {subject.second}"
        ttft, speed = subject.ratios["ttft_s"], subject.ratios["tokens_per_s"]
        table.add_row(
            escape(name),
            f"{1 / ttft.median:.2f}x\n{1 / ttft.high:.2f} - {1 / ttft.low:.2f}",
            f"{speed.median:.2f}x\n{speed.low:.2f} - {speed.high:.2f}",
            f"{subject.memory_ratio:.2f}x",
            f"{subject.bytes_ratio:.2f}x",
        )
    notes = [
        "Speed above 1 is faster. The runs were not interleaved: drift of the machine between them "
        "is inside these figures."
    ]
    if not comparison.same_machine:
        notes.append("The machines differ: these ratios are of machine and model together.")
    notes += doubt_of_processes(comparison.sessions)
    notes += [f"{name}: {old} -> {new}" for name, (old, new) in comparison.differing_versions.items()]
    return Group(table, Text("\n".join(notes), style="dim"))


def load_screen(curve: LoadCurve, *, output: Path | None = None) -> RenderableType:
    """One row for each level."""
    table = Table(title="Throughput and latency", title_justify="left", box=SIMPLE_HEAD)
    for heading in (
        "requests\nin flight",
        "requests\ncounted",
        "tokens\nper s",
        "1st token, ms\np50 / p90 / p99",
        "per token, ms\np50 / p90 / p99",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for level in curve.levels:
        spreads = [
            " / ".join(_ms(value) if level.requests >= FEWEST[name] else "-" for name, value in spread.items())
            for spread in (level.ttft_s, level.tpot_s)
        ]
        table.add_row(str(level.concurrency), str(level.requests), f"{level.tokens_per_s:.1f}", *spreads)
    lines = [
        f"{curve.prompt_tokens} random prompt tokens, {curve.new_tokens} new; {curve.facts.runtime}, "
        f"{curve.facts.precision}.",
        f"{curve.environment.cpu}, {curve.environment.usable_cpus} CPUs, load {curve.environment.load_average}.",
    ]
    if any(level.requests < max(FEWEST.values()) for level in curve.levels):
        lines.append("- is what so few requests cannot tell: p90 needs ten, p99 a hundred (--requests).")
    if output is not None:
        lines.append(f"Written: {output}")
    return Group(table, Text("\n".join(lines), style="dim"))


def _ms(seconds: float) -> str:
    """As narrow as what can be told apart."""
    return f"{1e3 * seconds:.1f}" if seconds < 1 else f"{1e3 * seconds:.0f}"


def forward_screen(times: Sequence[ForwardTime], *, tokens: int) -> RenderableType:
    """One row for each classifier."""
    table = Table(title=f"one forward, batch 1, {tokens} tokens, OpenVINO CPU", title_justify="left")
    table.add_column("export", overflow="fold")
    for heading in ("ms", "speed-up", "95 % interval", "MB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for item in times:
        table.add_row(
            escape(item.directory),
            f"{item.ms:.2f}",
            f"{item.speedup:.2f}x",
            f"{item.low:.2f} to {item.high:.2f}",
            f"{item.bytes / 1e6:.1f}",
        )
    return table


def _how(benchmark: Benchmark) -> list[str]:
    work, environment, first = benchmark.workload, benchmark.environment, benchmark.subjects[0]
    blocks = benchmark.blocks
    prompt = work.trace_in_words(blocks) if work.trace else f"{work.prompt_tokens} prompt tokens"
    lines = [
        f"Median over 95 % interval of {blocks} interleaved runs: {prompt}, {work.new_tokens_in_words(blocks)} new, "
        f"greedy, batch {work.batch}.",
        f"{environment.cpu}, {environment.usable_cpus} CPUs, load {environment.load_average}; the "
        f"processes may use {len(first.cpus)}.",
    ]
    if first.huge_memory_bytes:
        share = f"{first.huge_memory_bytes / first.private_memory_bytes:.0%} of the private memory"
        lines.append(
            f"{share} was moved into huge pages; --no-huge-pages measures without."
            if benchmark.options.huge_pages
            else f"{share} lies in huge pages, which this system gives unasked."
        )
    if len(benchmark.subjects) > 1:
        lines.append(
            "'vs' compares pairs measured side by side with the first: above 1 is faster; an "
            "interval that holds 1.00 shows no difference."
        )
    return lines


def doubt_of_processes(sessions: int) -> list[str]:
    """What intervals do not say where few processes were measured."""
    if sessions >= FEWEST_PROCESSES:
        return []
    processes = "one process" if sessions == 1 else f"{sessions} processes"
    return [
        f"The intervals are of {processes} of each model alone; others may be faster or slower for their whole life: "
        f"--sessions {FEWEST_PROCESSES} or more."
    ]


def doubt_of_trace(benchmark: Benchmark, *, told: str = "; --repeats {} measures each in every session") -> list[str]:
    """What was not measured of a trace, and what would."""
    prompts = len(benchmark.workload.trace)
    if benchmark.blocks >= prompts:
        return []
    return [f"Prompts of the trace that were not reached: {prompts - benchmark.blocks}{told.format(prompts)}."]


def _doubts(benchmark: Benchmark, names: Sequence[str]) -> list[str]:
    lines = [*doubt_of_processes(benchmark.sessions), *doubt_of_trace(benchmark)]
    blocks = benchmark.blocks
    # The range of n values holds the median with probability 1 - 2 / 2**n; no bootstrap interval is wider than it.
    coverage = 1 - 2 / 2**blocks
    if coverage < CONFIDENCE:
        lines.append(
            f"From {blocks} runs an interval holds the true median in at most {coverage:.0%} of "
            "cases, not 95 %: --repeats 6 or more."
        )
    huge_pages = doubt_of_huge_pages(benchmark.huge_shares(names))
    return [*lines, *([] if huge_pages is None else [f"{huge_pages}; --sessions 5 or more shows it."])]


def _disturbances(benchmark: Benchmark, names: Sequence[str]) -> list[str]:
    lines = []
    waits = {name: _waited_share(benchmark, index) for index, name in enumerate(names)}
    if max(waits.values()) > 0.02:
        shown = ", ".join(f"{name} {share:.0%}" for name, share in waits.items())
        lines.append(f"Other work took time from the calling thread ({shown}): trust the ratios, not the milliseconds.")
    loops = _loops(benchmark, names)
    if len(set(loops.values())) > 1:
        shown = "; ".join(f"{name} {loop}" for name, loop in loops.items())
        lines.append(
            f"The loop around each token is Python's, which differs: {shown}. With equal ones only the runtime is "
            "compared."
        )
    for name, subject in zip(names, benchmark.subjects, strict=True):
        left_out = subject.facts.settings.get(LEFT_OUT)
        if left_out:
            lines.append(
                f"{name}: llama.cpp was compiled without {left_out}, which this processor has. A build for this "
                "machine may be faster: pip install --no-cache-dir --force-reinstall --no-binary llama-cpp-python "
                "llama-cpp-python."
            )
    return lines


def _loops(benchmark: Benchmark, names: Sequence[str]) -> dict[str, str]:
    """Python and numpy of those that are measured by a loop in another environment; GenAI has a loop of its own."""
    return {
        name: ", ".join(f"{part} {subject.facts.settings.get(part)}" for part in AROUND_THE_LOOP)
        for name, subject in zip(names, benchmark.subjects, strict=True)
        if subject.deployment.engine not in (None, "genai")
    }


def _waited_share(benchmark: Benchmark, index: int) -> float:
    own = [sample for sample in benchmark.samples if sample.subject == index]
    return sum(sample.waited_s or 0.0 for sample in own) / sum(sample.total_s for sample in own)


def short_names(labels: Sequence[str]) -> list[str]:
    """The shortest path endings that tell the labels apart; equal labels are numbered."""
    depth = 1
    parts = [Path(label).parts for label in labels]
    while depth < max(map(len, parts)) and len({item[-depth:] for item in parts}) < len(set(parts)):
        depth += 1
    names = [str(Path(*item[-depth:])) for item in parts]
    return [
        f"{name} #{names[: place + 1].count(name)}" if names.count(name) > 1 else name
        for place, name in enumerate(names)
    ]


def _speed_table(benchmark: Benchmark, names: Sequence[str]) -> Table:
    table = Table(title="Speed", title_justify="left", box=SIMPLE_HEAD, padding=(0, 0, 0, 1))
    table.add_column("model", overflow="fold", min_width=12)
    headings = ["1st token\nms", "per token\nms", "tokens\nper s"]
    compared = len(benchmark.subjects) > 1
    if compared:
        headings += ["1st token\nvs", "decode\nvs"]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, subject in zip(names, benchmark.subjects, strict=True):
        metrics = subject.metrics
        row = [
            f"{escape(name)}\n{subject.deployment.format} {subject.facts.precision}",
            _interval(metrics["ttft_s"], 1e3),
            _interval(metrics["tpot_s"], 1e3),
            f"{metrics['tokens_per_s'].median:.{0 if metrics['tokens_per_s'].median >= 100 else 1}f}",
        ]
        if compared:
            row += [_speedup(subject.ratios.get("ttft_s")), _speedup(subject.ratios.get("tpot_s"))]
        table.add_row(*row)
    return table


def _cost_table(subjects: Sequence[BenchmarkSubject], names: Sequence[str]) -> Table:
    table = Table(title="Cost", title_justify="left", box=SIMPLE_HEAD, padding=(0, 0, 0, 1))
    table.add_column("model", overflow="fold")
    for heading in ("weights\nMiB", "load\ns", "peak\nmemory, MiB", "private\nmemory, MiB", "gaps p50 / p90 / p99\nms"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, subject in zip(names, subjects, strict=True):
        table.add_row(
            escape(name),
            f"{subject.deployment.weights_bytes / MIB:.1f}",
            f"{subject.load_s.median:.2f}",
            f"{subject.peak_memory_bytes / MIB:.0f}",
            f"{subject.private_memory_bytes / MIB:.0f}",
            " / ".join(f"{1e3 * gap_s:.1f}" for gap_s in subject.gap_percentiles_s.values()),
        )
    return table


def _interval(estimate: Estimate, scale: float) -> str:
    value = scale * estimate.median
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f}\n{scale * estimate.low:.{digits}f} - {scale * estimate.high:.{digits}f}"


def _speedup(ratio: Estimate | None) -> str:
    # Times were compared, people read speed: invert, and swap the bounds.
    return "reference" if ratio is None else f"{1 / ratio.median:.2f}x\n{1 / ratio.high:.2f} - {1 / ratio.low:.2f}"
