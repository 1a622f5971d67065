"""`shearling`: the demo, and looking at what is there; the stages are `python -m train`, `search`, `export`,
`serve`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from shearling.command_line import LARGEST_SEED, DebugFlag, ForceFlag, JsonFlag, Result, make_app, run_command
from shearling.evaluation.precision import Precision
from shearling.executors.command_options import (
    AddressOption,
    ExecutorOption,
    ThreadsOption,
    WorkersOption,
)
from shearling.target import Target, parse_target

app = make_app("Sparse fine-tuning of language models, from pretrained to deployed.")


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Where everything lands; an interrupted demo continues.")] = Path(
        "runs/demo"
    ),
    scale: Annotated[
        Literal["full", "smoke"], typer.Option(help="smoke: the same road with few rows and steps.")
    ] = "full",
    peer: Annotated[
        list[Target] | None,
        typer.Option(
            parser=parse_target,
            metavar="DIR|FILE.gguf",
            help="Evaluate and time this model as well, such as FILE.gguf@environment=DIR; may be given again.",
        ),
    ] = None,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> Result:
    """A real model from pretrained to deployed, beside its baselines."""
    from shearling.demo.shears.stage import run_demo

    return run_demo(output, scale=scale, force=force, peers=peer or ())


@app.command()
def demo_lonas(
    output: Annotated[Path, typer.Option(help="Where everything lands; an interrupted demo continues.")] = Path(
        "runs/demo-lonas"
    ),
    model: Annotated[Literal["encoder", "decoder"], typer.Option(help="MiniLM, a classifier; or SmolLM2.")] = "encoder",
    scale: Annotated[
        Literal["full", "smoke"], typer.Option(help="smoke: the same road with few rows and steps.")
    ] = "full",
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Of the recipes, the heads and the search.")] = 0,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> Result:
    """A model with elastic widths, cut to size, beside LoRA at full width."""
    from shearling.demo.lonas.stage import run_demo

    return run_demo(output, kind=model, scale=scale, seed=seed, force=force)


@app.command()
def doctor(as_json: JsonFlag = False, debug: DebugFlag = False) -> Result:
    """Say where the stages come from, which versions and devices there are, and what is wrong."""
    from shearling.commands.doctor import examine

    return examine()


@app.command()
def inspect(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="An artefact, such as runs/demo/sparse.")],
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> Result:
    """Verify an artefact byte for byte and show what it holds."""
    from shearling.commands.inspection import inspect_artefact

    return inspect_artefact(directory)


@app.command()
def evaluate(
    targets: Annotated[
        list[Target],
        typer.Argument(
            metavar="DIR...",
            parser=parse_target,
            help="Model directories of Hugging Face, OpenVINO or ONNX, exports, of which model/ is taken unless "
            "DIR@format=openvino says otherwise, or GGUF files. DIR@PROPERTY=VALUE,... sets properties of OpenVINO; "
            "FILE.gguf@environment=DIR names the virtual environment of llama.cpp.",
        ),
    ],
    tasks: Annotated[
        str,
        typer.Option(help="RUN/task or names of tasks of lm-evaluation-harness, comma separated.", show_default=False),
    ],
    split: Annotated[Literal["validation", "test"], typer.Option(help="Which rows.")] = "test",
    limit: Annotated[int | None, typer.Option(min=1, help="The first rows only.")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Most rows of a batch.")] = 64,
    precision: Annotated[
        Precision, typer.Option(help="Of models in torch; auto: bf16 where the hardware has it.")
    ] = "auto",
    executor: ExecutorOption = "local",
    workers: WorkersOption = None,
    threads: ThreadsOption = None,
    address: AddressOption = None,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> Result:
    """Accuracy with its interval, bits per byte, and the zeros counted, of several models side by side."""
    from shearling.commands.evaluation import evaluate_models
    from shearling.executors.executor import Workforce

    return evaluate_models(
        targets,
        tasks=tasks,
        split=split,
        limit=limit,
        batch_size=batch_size,
        precision=precision,
        workforce=Workforce(executor, workers, threads, address=address),
    )


@app.command()
def schema(
    output: Annotated[Path | None, typer.Option(help="Write it here instead of printing it.")] = None,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> Result:
    """The JSON schema of recipes, for editors and for checking."""
    from shearling.commands.schema import publish_schema

    return publish_schema(output)


@app.command()
def members(
    output: Annotated[Path | None, typer.Option(help="Write a page of Markdown here instead.")] = None,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> Result:
    """What a recipe or an option may name: pruning methods, algorithms, formats, runtimes."""
    from shearling.commands.members import list_members

    return list_members(output)


def main() -> NoReturn:
    """The console script."""
    run_command(app, program="shearling")


if __name__ == "__main__":
    main()
