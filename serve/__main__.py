"""`python -m serve`: run an exported model, and measure it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from serve.bench.time_budget import CHECK_S
from shearling.command_line import DebugFlag, ForceFlag, JsonFlag, Result, make_app, run_command

if TYPE_CHECKING:
    from serve.runtimes.runtime import RunOptions

app = make_app("Run exported models and measure their speed.")

FormatOption = Annotated[
    Literal["auto", "openvino", "onnx", "torch"],
    typer.Option("--format", help="Which format of DIR to run; auto takes the first there is."),
]
DeviceOption = Annotated[
    str, typer.Option("--device", help="CPU, GPU (OpenVINO), CUDA (ONNX Runtime, PyTorch), TENSORRT (ONNX Runtime).")
]
PrecisionOption = Annotated[
    Literal["default", "f32", "bf16"],
    typer.Option(
        "--precision", help="Of the arithmetic; default is what the runtime does by itself, and f32 for packed models."
    ),
]
HintOption = Annotated[
    Literal["latency", "throughput"] | None,
    typer.Option("--hint", help="OpenVINO's performance hint; default is the device's."),
]
HugePagesOption = Annotated[
    bool,
    typer.Option(
        "--huge-pages/--no-huge-pages",
        help="Move memory into huge pages: without, like processes differ by up to 15 %.",
    ),
]
TraceOption = Annotated[
    Path | None,
    typer.Option("--trace", help='Real prompts instead of random ones: JSON lines {"prompt": ..., "new_tokens": ...}.'),
]
BatchOption = Annotated[int, typer.Option("--batch", help="Prompts that are decoded together.")]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, help="CPU threads; the runtime chooses if not given.")
]


@app.command()
def generate(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="An export, or a directory with a model.")],
    prompt: Annotated[str, typer.Option("--prompt", help="What the model continues or answers.")],
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Stop after so many tokens.")] = 128,
    model_format: FormatOption = "auto",
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
    from serve.generate import generate_text
    from shearling.console import log

    def show(piece: str) -> None:
        sys.stdout.write(piece)
        sys.stdout.flush()

    answer = generate_text(
        directory,
        prompt=prompt,
        max_new_tokens=max_new_tokens,
        choice=model_format,
        options=_options(device, precision, threads),
        chat=chat,
        on_text=None if as_json else show,
    )
    if as_json:
        return Result(answer.model_dump(mode="json"), "")
    show("\n")
    log.print(answer.summary(), style="dim")
    return None


@app.command()
def bench(
    directories: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...",
            help="Exports, model directories or GGUF files, the first is the reference; "
            "DIR@format=onnx, DIR@PROPERTY=VALUE,... and, for llama.cpp "
            "or DeepSparse in an environment of its own, FILE.gguf@environment=DIR or "
            "DIR@environment=DIR hold for one of them.",
        ),
    ],
    model_format: FormatOption = "auto",
    device: DeviceOption = "CPU",
    precision: PrecisionOption = "default",
    threads: ThreadsOption = None,
    hint: HintOption = None,
    huge_pages: HugePagesOption = True,
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", help="Length of the prompt.")] = 128,
    new_tokens: Annotated[int, typer.Option("--new-tokens", help="Tokens to generate, at least 2.")] = 64,
    trace: TraceOption = None,
    batch: BatchOption = 1,
    repeats: Annotated[int, typer.Option("--repeats", help="Measured runs of each, per session.")] = 6,
    warmup: Annotated[int, typer.Option("--warmup", help="Runs of each that are thrown away, per session.")] = 1,
    sessions: Annotated[int, typer.Option("--sessions", help="How often all processes are started anew.")] = 1,
    seed: Annotated[int, typer.Option("--seed", help="Of the random prompts and the bootstrap.")] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", help="Write a benchmark artefact here; an interrupted one is continued.")
    ] = None,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> Result:
    """Measure models side by side: first token, per token, memory, load time, size."""
    from serve.bench.benchmark import BenchmarkInterrupted, run_benchmark
    from serve.bench.benchmark_artefact import run_into
    from serve.bench.screen import benchmark_screen
    from serve.bench.workload import make_workload
    from shearling.console import log

    options = _options(device, precision, threads, hint=hint, huge_pages=huge_pages)
    workload = make_workload(
        prompt_tokens,
        new_tokens,
        repeats=repeats,
        warmup=warmup,
        sessions=sessions,
        seed=seed,
        trace=trace,
        batch=batch,
    )
    try:
        if output is None:
            benchmark = run_benchmark(directories, options=options, workload=workload, choice=model_format)
        else:
            benchmark = run_into(
                output, directories, options=options, workload=workload, choice=model_format, force=force
            )
    except BenchmarkInterrupted as interruption:
        log.print(benchmark_screen(interruption.benchmark))
        log.print("these are the finished blocks; they are written nowhere: --output would keep them, and continue")
        raise interruption.cause from None
    return Result(benchmark.model_dump(mode="json", by_alias=True), benchmark_screen(benchmark, output=output))


@app.command()
def load(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="An export with OpenVINO, or DIR@PROPERTY=VALUE,...")
    ],
    concurrency: Annotated[
        str, typer.Option("--concurrency", help="Requests in flight, separated by commas.")
    ] = "1,2,4,8",
    requests: Annotated[int, typer.Option("--requests", help="At least so many for each number.")] = 8,
    device: DeviceOption = "CPU",
    precision: PrecisionOption = "default",
    threads: ThreadsOption = None,
    hint: HintOption = "throughput",
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", help="Length of each prompt.")] = 128,
    new_tokens: Annotated[int, typer.Option("--new-tokens", help="Tokens of each answer, at least 2.")] = 64,
    seed: Annotated[int, typer.Option("--seed", help="Of the random prompts.")] = 0,
    output: Annotated[Path | None, typer.Option("--output", help="Write a benchmark artefact here.")] = None,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> Result:
    """Draw throughput against latency with many requests at once (continuous batching)."""
    from serve.bench.concurrency import load_screen, measure_load, write_load_curve
    from shearling.artefact import check_destination
    from shearling.errors import UsageError

    if output is not None:
        check_destination(output, force=force)
    parts = concurrency.split(",")
    if not all(part.strip().isdigit() for part in parts):
        raise UsageError(
            f"cannot read the numbers of requests {concurrency!r}", remedy="Give --concurrency 1,2,4,8, for example"
        )
    curve = measure_load(
        directory,
        options=_options(device, precision, threads, hint=hint),
        concurrency=[int(part) for part in parts],
        requests=requests,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        seed=seed,
    )
    if output is not None:
        write_load_curve(output, curve, force=force)
    return Result(curve.model_dump(mode="json", by_alias=True), load_screen(curve, output=output))


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
    from serve.bench.comparison import compare_benchmarks, comparison_screen

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
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> Result:
    """Draw benchmarks of one machine by their date."""
    from serve.bench.benchmark_artefact import read_benchmark
    from serve.bench.page import write_history

    write_history(output, [read_benchmark(path) for path in benchmarks])
    return Result({"output": str(output), "benchmarks": len(benchmarks)}, f"Written: {output}")


@app.command()
def check(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The candidate.")],
    against: Annotated[
        Path | None, typer.Option("--against", help="The reference, measured side by side with DIR.")
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
    max_ratio: Annotated[
        float, typer.Option("--max-ratio", help="Largest acceptable time, relative to the reference's.")
    ] = 1.05,
    model_format: FormatOption = "auto",
    device: DeviceOption = "CPU",
    precision: PrecisionOption = "default",
    threads: Annotated[
        int,
        typer.Option(
            "--threads",
            min=1,
            help="With 1, time that other processes take is told apart and subtracted; with more it is not.",
        ),
    ] = 1,
    hint: HintOption = None,
    huge_pages: HugePagesOption = True,
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", help="Length of the prompt.")] = 64,
    new_tokens: Annotated[int, typer.Option("--new-tokens", help="Tokens to generate, at least 2.")] = 16,
    trace: TraceOption = None,
    batch: BatchOption = 1,
    budget_s: Annotated[
        float, typer.Option("--budget", help="Seconds after which an open verdict is inconclusive; loading included.")
    ] = CHECK_S,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> Result:
    """Guard against slowdowns: 0 passes, 1 is a regression or inconclusive."""
    from serve.guard.baseline import check_baseline
    from serve.guard.regression import check_regression, guard_workload, require_pass, verdict_screen
    from shearling.errors import UsageError

    if record and baseline is None:
        raise UsageError("--record has nowhere to write", remedy="Give --baseline FILE")
    workload = guard_workload(prompt_tokens, new_tokens, budget_s=budget_s, trace=trace, batch=batch)
    options = _options(device, precision, threads, hint=hint, huge_pages=huge_pages)
    if against is not None and baseline is None:
        verdict, benchmark = check_regression(
            directory, against, max_ratio=max_ratio, options=options, workload=workload, choice=model_format
        )
    elif baseline is not None and against is None:
        verdict, benchmark = check_baseline(
            directory,
            baseline,
            max_ratio=max_ratio,
            options=options,
            workload=workload,
            choice=model_format,
            record=record,
            allow_other_versions=allow_other_versions,
        )
    else:
        raise UsageError("a check needs one reference", remedy="Give either --against DIR or --baseline FILE")
    require_pass(verdict)
    return Result(verdict.model_dump(mode="json"), verdict_screen(verdict, benchmark))


def _options(
    device: str,
    precision: Literal["default", "f32", "bf16"],
    threads: int | None,
    *,
    hint: Literal["latency", "throughput"] | None = None,
    huge_pages: bool = True,
) -> RunOptions:
    from serve.runtimes.runtime import RunOptions

    return RunOptions(device=device.upper(), precision=precision, threads=threads, hint=hint, huge_pages=huge_pages)


if __name__ == "__main__":
    run_command(app, program="python -m serve")
