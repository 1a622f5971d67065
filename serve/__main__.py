"""`python -m serve`: run an exported model, and measure it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from serve.bench.time_budget import CHECK_S
from serve.http.limits import Limits, make_limits
from serve.http.named_target import NamedTarget, parse_named_target
from serve.runtimes.runtime import Hint, Precision, RunOptions
from shearling.command_line import (
    LARGEST_SEED,
    DebugFlag,
    ForceFlag,
    JsonFlag,
    Result,
    make_app,
    print_piece,
    run_command,
)
from shearling.console import log
from shearling.registry.name_option import NameOption, member_of
from shearling.registry.runtimes import RUNTIMES
from shearling.target import AUTO, Target, parse_target

app = make_app("Run exported models and measure their speed.")

DEFAULTS = Limits()
TARGET = "an export, a directory with a model, or a GGUF file"
MEASURED = "an export, a directory with a model, or a file: .gguf, .xml, .onnx"
SETTINGS = "DIR@format=NAME and DIR@PROPERTY=VALUE,... hold for one model alone"
ENVIRONMENT = "DIR@environment=VENV measures it there"


FormatOption = Annotated[
    str,
    typer.Option(
        "--format",
        click_type=member_of(RUNTIMES, also=(AUTO,)),
        help="Which format of DIR to run; auto takes the first there is that runs on the device.",
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        click_type=NameOption(lambda: dict.fromkeys(device for runtime in RUNTIMES for device in runtime.devices)),
        help="Where it runs; not every format runs on each.",
    ),
]
PrecisionOption = Annotated[
    Precision,
    typer.Option(
        "--precision",
        help="Of the arithmetic; default is what the runtime does by itself, and fp32 for packed models but in their "
        "products of integers; fp32 rounds there neither.",
    ),
]
HintOption = Annotated[
    Hint | None,
    typer.Option(
        "--hint", help="OpenVINO's performance hint; load and http ask for latency, others leave it to the device."
    ),
]
HugePagesOption = Annotated[
    bool,
    typer.Option(
        "--huge-pages/--no-huge-pages",
        help="Move memory into huge pages: without, like processes differ by up to 15 %.",
    ),
]
GenaiOption = Annotated[
    bool,
    typer.Option(
        "--genai/--no-genai",
        help="Measure OpenVINO through GenAI; without, any IR whose inputs are token ids, tokenizer or not.",
    ),
]
TraceOption = Annotated[
    Path | None,
    typer.Option("--trace", help='Real prompts instead of random ones: JSON lines {"prompt": ..., "new_tokens": ...}.'),
]
BatchSizeOption = Annotated[int, typer.Option("--batch-size", help="Prompts that are decoded together.")]
PromptTokensOption = Annotated[int, typer.Option("--prompt-tokens", help="Length of each prompt.")]
NewTokensOption = Annotated[int, typer.Option("--max-new-tokens", help="Tokens to generate, at least 2.")]
MaxRatioOption = Annotated[
    float, typer.Option("--max-ratio", help="Largest acceptable time, relative to the reference's.")
]
MaxLoadRatioOption = Annotated[
    float | None,
    typer.Option("--max-load-ratio", help="Likewise of the time to load, which takes a --budget of its own."),
]
MaxMemoryRatioOption = Annotated[float | None, typer.Option("--max-memory-ratio", help="Likewise of peak memory.")]
OtherTokensOption = Annotated[
    bool,
    typer.Option("--allow-other-tokens", help="In another environment: accept other answers, and another model."),
]
GuardThreadsOption = Annotated[
    int,
    typer.Option(
        "--threads",
        min=1,
        help="CPU threads. With one thread, time lost to other processes is subtracted; with more it is not.",
    ),
]
BudgetOption = Annotated[
    float, typer.Option("--budget", help="Seconds after which an open verdict is inconclusive; loading included.")
]
JunitOption = Annotated[Path | None, typer.Option("--junit", help="Write the verdict as JUnit XML here.")]
SummaryOption = Annotated[
    Path | None, typer.Option("--summary", help="Append it as Markdown here: $GITHUB_STEP_SUMMARY, for example.")
]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, help="CPU threads; the runtime chooses if not given.")
]


@app.command()
def generate(
    target: Annotated[
        Target, typer.Argument(metavar="DIR", parser=parse_target, help=f"What to run: {TARGET}; {SETTINGS}.")
    ],
    prompt: Annotated[str, typer.Option("--prompt", help="What the model continues or answers.")],
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Stop after so many tokens.")] = 128,
    model_format: FormatOption = AUTO,
    device: DeviceOption = "CPU",
    precision: PrecisionOption = "default",
    threads: ThreadsOption = None,
    chat: Annotated[
        bool | None, typer.Option("--chat/--no-chat", help="Use the chat template; by default if there is one.")
    ] = None,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> Result | None:
    """Continue a prompt, greedily, as text that appears while it is made."""
    _work_in_a_child([target], device=device, precision=precision, threads=threads)
    from serve.generate import generate_text
    from serve.screen import answer_line

    answer = generate_text(
        target.with_format(model_format),
        prompt=prompt,
        max_new_tokens=max_new_tokens,
        options=_options(device, precision, threads),
        chat=chat,
        on_text=None if as_json else print_piece,
    )
    if as_json:
        return Result(answer.model_dump(mode="json"), "")
    print_piece("\n")
    log.print(answer_line(answer), style="dim")
    return None


@app.command()
def bench(
    targets: Annotated[
        list[Target],
        typer.Argument(
            metavar="DIR...",
            parser=parse_target,
            help=f"What to measure, the first is the reference: {MEASURED}; {SETTINGS}; DIR@environment=DIR names "
            "the virtual environment that has its runtime.",
        ),
    ],
    model_format: FormatOption = AUTO,
    device: DeviceOption = "CPU",
    precision: PrecisionOption = "default",
    threads: ThreadsOption = None,
    hint: HintOption = None,
    huge_pages: HugePagesOption = True,
    genai: GenaiOption = True,
    prompt_tokens: PromptTokensOption = 128,
    max_new_tokens: NewTokensOption = 64,
    trace: TraceOption = None,
    batch_size: BatchSizeOption = 1,
    repeats: Annotated[int, typer.Option("--repeats", help="Measured runs of each, per session.")] = 6,
    warmup: Annotated[int, typer.Option("--warmup", help="Runs of each that are thrown away, per session.")] = 1,
    sessions: Annotated[int, typer.Option("--sessions", help="How often all processes are started anew.")] = 1,
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=LARGEST_SEED, help="Of the random prompts and the bootstrap.")
    ] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", help="Write a benchmark artefact here; an interrupted one is continued.")
    ] = None,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> Result:
    """Measure models side by side: first token, per token, memory, load time, size."""
    from serve.bench.screen import benchmark_screen
    from serve.bench.stage import bench_models
    from serve.bench.workload import make_workload

    workload = make_workload(
        prompt_tokens,
        max_new_tokens,
        repeats=repeats,
        warmup=warmup,
        sessions=sessions,
        seed=seed,
        trace=trace,
        batch=batch_size,
    )
    benchmark = bench_models(
        [target.with_format(model_format) for target in targets],
        options=_options(device, precision, threads, hint=hint, huge_pages=huge_pages, genai=genai),
        workload=workload,
        output=output,
        force=force,
    )
    return Result(benchmark.model_dump(mode="json", by_alias=True), benchmark_screen(benchmark, output=output))


@app.command()
def load(
    target: Annotated[
        Target,
        typer.Argument(metavar="DIR", parser=parse_target, help="An export with OpenVINO, or DIR@PROPERTY=VALUE,..."),
    ],
    concurrency: Annotated[
        str, typer.Option("--concurrency", help="Requests in flight, separated by commas.")
    ] = "1,2,4,8",
    requests: Annotated[int, typer.Option("--requests", help="At least so many for each number.")] = 8,
    device: DeviceOption = "CPU",
    precision: PrecisionOption = "default",
    threads: ThreadsOption = None,
    hint: HintOption = "latency",
    prompt_tokens: PromptTokensOption = 128,
    max_new_tokens: NewTokensOption = 64,
    seed: Annotated[int, typer.Option("--seed", min=0, max=LARGEST_SEED, help="Of the random prompts.")] = 0,
    output: Annotated[Path | None, typer.Option("--output", help="Write a benchmark artefact here.")] = None,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> Result:
    """Draw throughput against latency with many requests at once (continuous batching)."""
    _work_in_a_child([target], device=device, precision=precision, threads=threads)
    from serve.bench.concurrency import LoadWork
    from serve.bench.screen import load_screen
    from serve.bench.stage import draw_load_curve, parse_concurrency

    work = LoadWork(
        concurrency=parse_concurrency(concurrency),
        requests=requests,
        prompt_tokens=prompt_tokens,
        new_tokens=max_new_tokens,
        seed=seed,
    )
    options = _options(device, precision, threads, hint=hint)
    curve = draw_load_curve(target, work, options=options, output=output, force=force)
    return Result(curve.model_dump(mode="json", by_alias=True), load_screen(curve, output=output))


@app.command()
def http(
    models: Annotated[
        list[NamedTarget],
        typer.Argument(
            metavar="[NAME=]DIR...",
            parser=parse_named_target,
            help="Exports with OpenVINO, and what clients call them; by default as the directory is called. "
            "DIR@PROPERTY=VALUE,... holds for one alone.",
        ),
    ],
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; the default is reached from this machine alone.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes any that is free.")] = 8000,
    device: DeviceOption = "CPU",
    precision: PrecisionOption = "default",
    threads: ThreadsOption = None,
    hint: HintOption = "latency",
    concurrency: Annotated[
        int, typer.Option("--concurrency", min=1, help="Texts of each model that are decoded together.")
    ] = DEFAULTS.concurrency,
    queue: Annotated[
        int, typer.Option("--queue", min=0, help="Texts that may wait for a place; more are refused with 429.")
    ] = DEFAULTS.queue,
    max_prompt_tokens: Annotated[
        int | None, typer.Option("--max-prompt-tokens", min=1, help="Of a prompt; by default what the context holds.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Of an answer.")] = DEFAULTS.new_tokens,
    max_body_bytes: Annotated[
        int, typer.Option("--max-body-bytes", min=1, help="Of a request; larger ones are refused with 413.")
    ] = DEFAULTS.body_bytes,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=0.001, help="Seconds for an answer, waiting included.")
    ] = DEFAULTS.timeout_s,
    grace_s: Annotated[
        float, typer.Option("--grace", min=0, help="Seconds for what runs when SIGTERM says to end.")
    ] = DEFAULTS.grace_s,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> Result:
    """Serve models over OpenAI's API, many requests at once; SHEARLING_API_KEY asks for a key."""
    from serve.http.stage import serve_models

    served = serve_models(
        models,
        options=_options(device, precision, threads, hint=hint),
        limits=make_limits(
            body_bytes=max_body_bytes,
            prompt_tokens=max_prompt_tokens,
            new_tokens=max_new_tokens,
            concurrency=concurrency,
            queue=queue,
            timeout_s=timeout_s,
            grace_s=grace_s,
        ),
        host=host,
        port=port,
    )
    return Result(served.model_dump(mode="json"), f"Ended in order: {served.answered} requests answered")


@app.command()
def forward(
    targets: Annotated[
        list[Target],
        typer.Argument(
            metavar="DIR...",
            parser=parse_target,
            help="Exports of classifiers with OpenVINO, the first is the reference; DIR@PROPERTY=VALUE,...",
        ),
    ],
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Length of the sequence; batch 1.")] = 64,
    blocks: Annotated[int, typer.Option("--blocks", min=2, help="Rounds in which every model has its turn.")] = 40,
    threads: ThreadsOption = None,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> Result:
    """Time one forward of exported classifiers on OpenVINO's CPU device, side by side."""
    _work_in_a_child(targets, device="CPU", precision=None, threads=threads)
    from serve.bench.forward import measure_forwards
    from serve.bench.screen import forward_screen

    times = measure_forwards(targets, tokens=tokens, blocks=blocks, threads=threads)
    data = {"tokens": tokens, "times": [item.model_dump(mode="json") for item in times]}
    return Result(data, forward_screen(times, tokens=tokens))


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="A benchmark artefact, or its benchmark.json.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="The one to compare with A.")],
    allow_other_machine: Annotated[
        bool, typer.Option("--allow-other-machine", help="Compare although the machines differ.")
    ] = False,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> Result:
    """Compare two benchmarks that were written at different times."""
    from serve.bench.benchmark_artefact import read_benchmark
    from serve.bench.comparison import compare_benchmarks
    from serve.bench.screen import comparison_screen

    comparison = compare_benchmarks(
        read_benchmark(first), read_benchmark(second), allow_other_machine=allow_other_machine
    )
    return Result(comparison.model_dump(mode="json"), comparison_screen(comparison))


@app.command()
def history(
    benchmarks: Annotated[
        list[Path],
        typer.Argument(metavar="A B...", help="Benchmark artefacts of one machine, or their benchmark.json."),
    ],
    output: Annotated[Path, typer.Option("--output", help="The HTML file to write.")],
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> Result:
    """Draw benchmarks of one machine by their date."""
    from serve.bench.stage import draw_history

    draw_history(benchmarks, output=output, force=force)
    return Result({"output": str(output), "benchmarks": len(benchmarks)}, f"Written: {output}")


@app.command()
def check(
    target: Annotated[
        Target,
        typer.Argument(metavar="DIR", parser=parse_target, help=f"Candidate: {MEASURED}; {SETTINGS}; {ENVIRONMENT}."),
    ],
    against: Annotated[
        Target | None,
        typer.Option(
            "--against", metavar="DIR", parser=parse_target, help="The reference, measured side by side with DIR."
        ),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            "--baseline", help="A history of this machine instead: a JSON file that --record writes and extends."
        ),
    ] = None,
    record: Annotated[
        bool, typer.Option("--record", help="Add this measurement to the baseline, if it passes.")
    ] = False,
    allow_other_versions: Annotated[
        bool, typer.Option("--allow-other-versions", help="Accept a baseline of other runtime versions.")
    ] = False,
    max_ratio: MaxRatioOption = 1.05,
    max_load_ratio: MaxLoadRatioOption = None,
    max_memory_ratio: MaxMemoryRatioOption = None,
    allow_other_tokens: OtherTokensOption = False,
    model_format: FormatOption = AUTO,
    device: DeviceOption = "CPU",
    precision: PrecisionOption = "default",
    threads: GuardThreadsOption = 1,
    hint: HintOption = None,
    huge_pages: HugePagesOption = True,
    genai: GenaiOption = True,
    prompt_tokens: PromptTokensOption = 64,
    max_new_tokens: NewTokensOption = 16,
    trace: TraceOption = None,
    batch_size: BatchSizeOption = 1,
    budget_s: BudgetOption = CHECK_S,
    junit: JunitOption = None,
    summary: SummaryOption = None,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> Result:
    """Guard against slowdowns: 0 passes, 1 is a regression, another answer, or inconclusive."""
    from serve.guard.regression import Demands, guard_workload
    from serve.guard.screen import verdict_screen
    from serve.guard.stage import Reports, check_model, names_of_check
    from serve.guard.telling import require_pass

    reports = Reports(junit, summary)
    with reports.whatever_comes(**names_of_check(target, against, baseline)):
        verdict, benchmark = check_model(
            target.with_format(model_format),
            reference=against and against.with_format(model_format),
            baseline=baseline,
            record=record,
            allow_other_versions=allow_other_versions,
            demands=Demands(max_ratio, max_load_ratio, max_memory_ratio, allow_other_tokens),
            options=_options(device, precision, threads, hint=hint, huge_pages=huge_pages, genai=genai),
            workload=guard_workload(prompt_tokens, max_new_tokens, budget_s=budget_s, trace=trace, batch=batch_size),
            reports=reports,
        )
    screen = verdict_screen(verdict, benchmark)
    if verdict.outcome != "pass":
        log.print(screen, soft_wrap=False)
    require_pass(verdict)
    return Result(verdict.model_dump(mode="json"), screen)


@app.command()
def bisect(
    target: Annotated[
        Target, typer.Argument(metavar="DIR", parser=parse_target, help=f"What is measured: {MEASURED}; {SETTINGS}.")
    ],
    versions: Annotated[
        str, typer.Option("--versions", help="Of the package, separated by commas, the oldest first: the reference.")
    ],
    package: Annotated[str, typer.Option("--package", help="What pip installs in these versions.")] = "openvino",
    also: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="REQUIREMENT",
            help="What pip installs beside it, such as openvino-genai=={version}.0; numpy, if nothing is named.",
        ),
    ] = None,
    python: Annotated[
        Path | None, typer.Option("--python", help="Interpreter of the environments; default is the one that runs.")
    ] = None,
    environments: Annotated[
        Path | None,
        typer.Option(
            "--environments", help="Keep the environments here, and use those of the same requirements; default: none."
        ),
    ] = None,
    max_ratio: MaxRatioOption = 1.05,
    max_load_ratio: MaxLoadRatioOption = None,
    max_memory_ratio: MaxMemoryRatioOption = None,
    allow_other_tokens: OtherTokensOption = False,
    model_format: FormatOption = AUTO,
    precision: PrecisionOption = "default",
    threads: GuardThreadsOption = 1,
    huge_pages: HugePagesOption = True,
    genai: GenaiOption = True,
    prompt_tokens: PromptTokensOption = 64,
    max_new_tokens: NewTokensOption = 16,
    batch_size: BatchSizeOption = 1,
    budget_s: BudgetOption = CHECK_S,
    junit: JunitOption = None,
    summary: SummaryOption = None,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> Result:
    """Find the first version of a runtime that is slower: 0 if none is, 1 names it."""
    from serve.guard.bisection import Installation, parse_versions, require_none_slower
    from serve.guard.regression import Demands, guard_workload
    from serve.guard.screen import bisection_screen
    from serve.guard.stage import Reports, find_first_slower

    reports = Reports(junit, summary)
    with reports.whatever_comes(name=f"{package} {versions}", candidate=target.label, reference=package):
        found = find_first_slower(
            target.with_format(model_format),
            versions=parse_versions(versions),
            installation=Installation(package, tuple(also or ["numpy"]), python, environments),
            demands=Demands(max_ratio, max_load_ratio, max_memory_ratio, allow_other_tokens),
            options=_options("CPU", precision, threads, huge_pages=huge_pages, genai=genai),
            workload=guard_workload(prompt_tokens, max_new_tokens, budget_s=budget_s, batch=batch_size),
            reports=reports,
        )
    screen = bisection_screen(found)
    if not found.passed:
        log.print(screen)
    require_none_slower(found)
    return Result(found.model_dump(mode="json"), screen)


def _work_in_a_child(
    targets: Sequence[Target], *, device: str, precision: Precision | None, threads: int | None
) -> None:
    """See `serve.bench.watched`; what imports a runtime comes behind this."""
    from serve.bench.watched import Undertaking, go_on_in_a_child

    own = "@INFERENCE_PRECISION_HINT=f32" if precision is None else "--precision fp32"
    settings = [
        f"device {device}",
        *([] if precision is None else [f"precision {precision}"]),
        "threads as the runtime likes" if threads is None else f"{threads} thread(s)",
    ]
    go_on_in_a_child(
        Undertaking(
            where=", ".join(target.label for target in targets),
            settings=", ".join(settings),
            remedy=f"Try {own} or another number of --threads",
        )
    )


def _options(
    device: str,
    precision: Precision,
    threads: int | None,
    *,
    hint: Hint | None = None,
    huge_pages: bool = True,
    genai: bool = True,
) -> RunOptions:
    return RunOptions(
        device=device.upper(), precision=precision, threads=threads, hint=hint, huge_pages=huge_pages, genai=genai
    )


def main() -> NoReturn:
    """The console script, which finds this stage from any directory."""
    run_command(app, program="shearling-serve")


if __name__ == "__main__":
    run_command(app, program="python -m serve")
