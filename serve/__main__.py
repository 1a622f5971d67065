"""`python -m serve`: run an exported model, and measure it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from shearling.command_line import DebugFlag, ForceFlag, JsonFlag, Result, make_app, run_command

if TYPE_CHECKING:
    from serve.runtime import RunOptions

app = make_app("Run exported models and measure their speed.")

FormatOption = Annotated[
    Literal["auto", "openvino", "onnx", "torch"], typer.Option("--format", help="Which format of DIR to run; auto takes the first there is.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="CPU, GPU (OpenVINO), CUDA (ONNX Runtime, PyTorch).")]
PrecisionOption = Annotated[
    Literal["default", "f32", "bf16"], typer.Option("--precision", help="Of the arithmetic; default is what the runtime does by itself.")
]
ThreadsOption = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads; the runtime chooses if not given.")]


@app.command()
def generate(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="An export, or a directory with a model.")],
    prompt: Annotated[str, typer.Option("--prompt", help="What the model continues or answers.")],
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Stop after so many tokens.")] = 128,
    model_format: FormatOption = "auto",
    device: DeviceOption = "CPU",
    precision: PrecisionOption = "default",
    threads: ThreadsOption = None,
    chat: Annotated[bool | None, typer.Option("--chat/--no-chat", help="Use the chat template; by default if there is one.")] = None,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> Result | None:
    """Continue a prompt, greedily, as text that appears while it is made."""
    from serve.generation import generate_text
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
            help="Exports or model directories, the first is the reference; DIR@format=onnx and DIR@PROPERTY=VALUE,... hold for one of them.",
        ),
    ],
    model_format: FormatOption = "auto",
    device: DeviceOption = "CPU",
    precision: PrecisionOption = "default",
    threads: ThreadsOption = None,
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", help="Length of the prompt.")] = 128,
    new_tokens: Annotated[int, typer.Option("--new-tokens", help="Tokens to generate, at least 2.")] = 64,
    repeats: Annotated[int, typer.Option("--repeats", help="Measured runs of each, per session.")] = 5,
    warmup: Annotated[int, typer.Option("--warmup", help="Runs of each that are thrown away, per session.")] = 1,
    sessions: Annotated[int, typer.Option("--sessions", help="How often all processes are started anew.")] = 1,
    seed: Annotated[int, typer.Option("--seed", help="Of the random prompts and the bootstrap.")] = 0,
    output: Annotated[Path | None, typer.Option("--output", help="Write a benchmark artefact here.")] = None,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> Result:
    """Measure models side by side: first token, per token, memory, load time, size."""
    from serve.benchmark import run_benchmark, write_benchmark
    from serve.measurement import make_workload
    from serve.screen import benchmark_screen
    from shearling.artefact import check_destination

    if output is not None:
        check_destination(output, force=force)
    options = _options(device, precision, threads)
    workload = make_workload(prompt_tokens, new_tokens, repeats=repeats, warmup=warmup, sessions=sessions, seed=seed)
    benchmark = run_benchmark(directories, options=options, workload=workload, choice=model_format)
    if output is not None:
        write_benchmark(output, benchmark, force=force)
    return Result(benchmark.model_dump(mode="json", by_alias=True), benchmark_screen(benchmark, output=output))


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="A benchmark artefact, or its benchmark.json.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="The one to compare with A.")],
    allow_other_machine: Annotated[bool, typer.Option("--allow-other-machine", help="Compare although the machines differ.")] = False,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> Result:
    """Compare two benchmarks that were written at different times."""
    from serve.benchmark import read_benchmark
    from serve.comparison import compare_benchmarks, comparison_screen

    comparison = compare_benchmarks(read_benchmark(first), read_benchmark(second), allow_other_machine=allow_other_machine)
    return Result(comparison.model_dump(mode="json"), comparison_screen(comparison))


@app.command()
def check(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The candidate.")],
    against: Annotated[Path, typer.Option("--against", help="The reference.")],
    max_ratio: Annotated[float, typer.Option("--max-ratio", help="Largest acceptable time, relative to the reference's.")] = 1.05,
    model_format: FormatOption = "auto",
    device: DeviceOption = "CPU",
    precision: PrecisionOption = "default",
    threads: ThreadsOption = None,
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", help="Length of the prompt.")] = 128,
    new_tokens: Annotated[int, typer.Option("--new-tokens", help="Tokens to generate, at least 2.")] = 32,
    repeats: Annotated[int, typer.Option("--repeats", help="At most so many pairs; stops earlier when the verdict is clear.")] = 40,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> Result:
    """Guard against slowdowns: 0 passes, 1 is a regression or inconclusive."""
    from serve.measurement import make_workload
    from serve.regression import check_regression, require_pass, verdict_screen

    workload = make_workload(prompt_tokens, new_tokens, repeats=repeats)
    options = _options(device, precision, threads)
    verdict, benchmark = check_regression(directory, against, max_ratio=max_ratio, options=options, workload=workload, choice=model_format)
    require_pass(verdict)
    return Result(verdict.model_dump(mode="json"), verdict_screen(verdict, benchmark))


def _options(device: str, precision: Literal["default", "f32", "bf16"], threads: int | None) -> RunOptions:
    from serve.runtime import RunOptions

    return RunOptions(device=device.upper(), precision=precision, threads=threads)


if __name__ == "__main__":
    run_command(app, program="python -m serve")
