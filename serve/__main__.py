"""`python -m serve`: run an exported model, and measure it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from shearling.command_line import DebugFlag, ForceFlag, JsonFlag, Result, make_app, run_command
from shearling.errors import UsageError

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
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Exports or model directories; the first is the reference.")],
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


def _options(device: str, precision: Literal["default", "f32", "bf16"], threads: int | None) -> RunOptions:
    from serve.runtime import RunOptions

    return RunOptions(device=device.upper(), precision=precision, threads=threads)


if __name__ == "__main__":
    run_command(app, program="python -m serve")
