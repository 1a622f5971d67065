"""`python -m search`: find the sub-network to deploy; `pick` takes another row of the journal."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from search.front import Preference
from search.mixing_options import LayerFormatsOption, RatiosOption, parse_layer_formats, parse_ratios
from search.strategies.grid import Landmark
from search.strategies.strategy import CostOption
from shearling.command_line import (
    LARGEST_SEED,
    DebugFlag,
    DryRunFlag,
    ForceFlag,
    JsonFlag,
    Result,
    make_app,
    require,
    run_command,
)
from shearling.evaluation.precision import Precision
from shearling.executors.command_options import (
    AddressOption,
    ExecutorOption,
    GpusOption,
    ThreadsOption,
    WorkersOption,
)
from shearling.registry.name_option import member_of
from shearling.registry.number_formats import NUMBER_FORMATS
from shearling.registry.search_algorithms import SEARCH_ALGORITHMS

app = make_app(
    "Find the best sub-network of a trained super-adapter on the validation split, and write best.json. "
    "Options that are left out come from the run's recipe."
)


@app.callback(invoke_without_command=True)
def search(
    context: typer.Context,
    run: Annotated[
        Path | None, typer.Option(help="The run directory, with a super-adapter; an interrupted search continues.")
    ] = None,
    algorithm: Annotated[
        str | None, typer.Option(click_type=member_of(SEARCH_ALGORITHMS), help="How sub-networks are chosen.")
    ] = None,
    evaluations: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Most sub-networks that the algorithm asks for; with more than one, the largest, the middle and the "
            "smallest are tried as well.",
        ),
    ] = None,
    population: Annotated[int | None, typer.Option(min=2, help="Sub-networks of a generation or of a round.")] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, help="Most validation rows that choose, of two thirds; and most of the third that is held back."
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="Another task than the run's: a name that lm-evaluation-harness knows, or a task file."),
    ] = None,
    split: Annotated[
        Literal["validation", "test"] | None,
        typer.Option(help="Rows of --task; default: validation. What is found by test rows has no test."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=LARGEST_SEED, help="Of the algorithm.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Most rows of a batch.")] = None,
    precision: Annotated[Precision | None, typer.Option(help="Arithmetic of the evaluation.")] = None,
    min_accuracy: Annotated[
        float | None, typer.Option(min=0, max=1, help="Refuse a best sub-network below this (exit 1).")
    ] = None,
    max_params: Annotated[
        int | None, typer.Option(min=1, help="Refuse one with more adapter parameters (exit 1).")
    ] = None,
    cost: Annotated[
        CostOption | None,
        typer.Option(
            help="What to save, beside accuracy; auto: bytes or nonzero_params where layers choose, else macs where "
            "sub-networks differ in them, else none."
        ),
    ] = None,
    max_cost_share: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Most that a sub-network may cost, as a share of the largest: 0.75 is a quarter less."
        ),
    ] = None,
    max_bytes: Annotated[int | None, typer.Option(min=1, help="Most that the exported weights may take.")] = None,
    max_latency_ms: Annotated[
        float | None, typer.Option(min=0, help="Most that a forward may take, as the latency table predicts.")
    ] = None,
    weight_format: Annotated[
        str | None,
        typer.Option(
            click_type=member_of(NUMBER_FORMATS),
            help="Of the export whose bytes are counted; default: as in the latency table, or fp32.",
        ),
    ] = None,
    sparse_kernel: Annotated[
        bool | None,
        typer.Option(
            "--sparse-kernel/--stock-kernel",
            help="Whether its zeros are packed away; default: as in the latency table, or not.",
        ),
    ] = None,
    ratios: RatiosOption = None,
    layer_formats: LayerFormatsOption = None,
    latency_table: Annotated[
        Path | None, typer.Option(help="Made by `python -m search latency`; default: that of the run.")
    ] = None,
    prefer: Annotated[
        Preference | None,
        typer.Option(help="What the rows do not tell from the largest: the largest, or the cheapest of them."),
    ] = None,
    accuracy_delta: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Best is the cheapest within this of the reference accuracy (LoNAS)."),
    ] = None,
    reference_accuracy: Annotated[
        float | None, typer.Option(min=0, max=1, help="Default: that of the largest sub-network.")
    ] = None,
    executor: ExecutorOption = "local",
    workers: WorkersOption = None,
    threads: ThreadsOption = None,
    gpus_per_worker: GpusOption = 0.0,
    address: AddressOption = None,
    memory: Annotated[
        Literal["auto", "fast", "lean"],
        typer.Option(help="lean: less of it and more time, the same numbers; auto: where fast does not fit."),
    ] = "auto",
    start_over: Annotated[
        bool,
        typer.Option(
            "--start-over",
            help="Do not ask before evaluations of an unfinished search are left behind; its journal is kept.",
        ),
    ] = False,
    dry_run: DryRunFlag = False,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> Result | None:
    """Find the best sub-network of a super-adapter, unless a subcommand is named.

    It is the largest one, unless another is more accurate on the same rows by more than chance explains; or, where
    something cheaper is preferred, the cheapest that the rows do not tell from the largest; or, with an accuracy delta,
    the cheapest whose accuracy is at least the reference less the delta. A third of the validation rows chooses
    nothing: on these the best one is measured at the end, which predicts its accuracy.
    """
    if context.invoked_subcommand is not None:
        return None
    run = require(run, "--run")
    from search.screen import summarise
    from search.stage import estimate_by_recipe, search_by_recipe
    from shearling.executors.executor import Workforce
    from shearling.run import Run

    settings = {
        "algorithm": algorithm,
        "evaluations": evaluations,
        "population": population,
        "limit": limit,
        "task": task,
        "split": split,
        "seed": seed,
        "batch_size": batch_size,
        "precision": precision,
        "cost": cost,
        "max_cost_share": max_cost_share,
        "max_bytes": max_bytes,
        "max_latency_ms": max_latency_ms,
        "weight_format": weight_format,
        "sparse_kernel": sparse_kernel,
        "latency_table": None if latency_table is None else str(latency_table),
        "ratios": parse_ratios(ratios),
        "layer_formats": parse_layer_formats(layer_formats),
    }
    rule = {
        "min_accuracy": min_accuracy,
        "max_params": max_params,
        "prefer": prefer,
        "accuracy_delta": accuracy_delta,
        "reference_accuracy": reference_accuracy,
    }
    asked: dict[str, Any] = {
        "settings": _given(settings),
        "rule": _given(rule),
        "workforce": Workforce(executor, workers, threads, gpus_per_worker, address),
        "memory": memory,
    }
    if dry_run:
        from shearling.dry_run import show_estimates

        return show_estimates({"search": estimate_by_recipe(Run(run), **asked)}, Run(run).search)
    return summarise(
        search_by_recipe(
            Run(run),
            **asked,
            force=force,
            consent=lambda lost: start_over or (not as_json and _confirm(lost)),
        )
    )


@app.command()
def pick(
    run: Annotated[Path, typer.Option(help="The run directory, with a finished search.", show_default=False)],
    row: Annotated[
        int,
        typer.Option(min=0, help="The row of journal.jsonl, from 0; pareto.json lists good ones.", show_default=False),
    ],
    output: Annotated[
        Path, typer.Option(help="The document to write; keep it where its relative paths hold.", show_default=False)
    ],
    force: ForceFlag = False,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> Result:
    """Make a sub-network document, like best.json, from any row of a finished search."""
    from search.pick import pick_row
    from search.screen import summarise_picked
    from shearling.run import Run

    return summarise_picked(pick_row(Run(run), row, output, force=force), output)


@app.command()
def describe(
    run: Annotated[Path, typer.Option(help="The run directory, with a super-adapter.", show_default=False)],
    output: Annotated[
        Path, typer.Option(help="The document to write; keep it where its relative paths hold.", show_default=False)
    ],
    subnet: Annotated[Landmark, typer.Option(help="Which sub-network.")] = "largest",
    ratios: RatiosOption = None,
    layer_formats: LayerFormatsOption = None,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> Result:
    """Make a sub-network document, like best.json, without a search: of the largest, the middle or the smallest."""
    from search.describing import write_landmark
    from search.screen import summarise_picked
    from shearling.run import Run

    mixed: dict[str, Any] = {"ratios": parse_ratios(ratios), "formats": parse_layer_formats(layer_formats)}
    return summarise_picked(write_landmark(Run(run), subnet, output, **mixed, force=force), output)


@app.command()
def latency(
    run: Annotated[Path, typer.Option(help="The run directory, with a super-adapter.", show_default=False)],
    model: Annotated[
        Path,
        typer.Option(
            help="An export of one of its sub-networks with OpenVINO, in the form to be shipped.", show_default=False
        ),
    ],
    output: Annotated[Path | None, typer.Option(help="Default: the directory latency of the run.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of the runtime; default: all processors.")] = None,
    tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Of the sequence; 1 is the decoding of a token; default: those of the recipe's MACs."),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.0, help="For each form of a layer, twice.")] = 1.0,
    ratios: RatiosOption = None,
    layer_formats: LayerFormatsOption = None,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> Result:
    """Measure on this machine how long each form of the elastic layers takes, once, for --cost latency.

    A table that is there is used again where it fits; where it does not, the command says why.
    """
    from search.latency.screen import summarise_table
    from search.latency.stage import measure_latencies
    from shearling.run import Run

    found = measure_latencies(
        Run(run),
        model,
        output=output or Run(run).latency,
        threads=threads or os.cpu_count() or 1,
        tokens=tokens,
        seconds=seconds,
        ratios=parse_ratios(ratios),
        formats=parse_layer_formats(layer_formats),
        force=force,
    )
    return summarise_table(found)


def _confirm(lost: str) -> bool:
    """Ask whoever sits there; where nobody does, nothing is dropped."""
    return sys.stdin.isatty() and typer.confirm(f"{lost}. Start over? Its journal is kept", err=True)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def main() -> NoReturn:
    """The console script, which finds this stage from any directory."""
    run_command(app, program="shearling-search")


if __name__ == "__main__":
    run_command(app, program="python -m search")
