"""`python -m search`: find the sub-network to deploy; `pick` takes another row of the journal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from search.strategies.strategy import Algorithm, Cost
from shearling.command_line import DebugFlag, ForceFlag, JsonFlag, Result, make_app, require, run_command
from shearling.errors import UsageError
from shearling.evaluation.precision import Precision

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
    algorithm: Annotated[Algorithm | None, typer.Option(help="The strategy.")] = None,
    evaluations: Annotated[int | None, typer.Option(min=1, help="Most sub-networks to evaluate.")] = None,
    population: Annotated[
        int | None, typer.Option(min=2, help="Of NSGA-II; neighbours of a round in hill climbing.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Validation rows of an evaluation.")] = None,
    task: Annotated[
        str | None, typer.Option(help="Any lm-evaluation-harness task with a validation split, instead of the run's.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the strategy.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Most rows of a batch.")] = None,
    precision: Annotated[Precision | None, typer.Option(help="Arithmetic of the evaluation.")] = None,
    min_accuracy: Annotated[
        float | None, typer.Option(min=0, max=1, help="Refuse a best sub-network below this (exit 1).")
    ] = None,
    max_params: Annotated[
        int | None, typer.Option(min=1, help="Refuse one with more adapter parameters (exit 1).")
    ] = None,
    cost: Annotated[Cost | None, typer.Option(help="What to save, beside accuracy.")] = None,
    max_cost_share: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Most that a sub-network may cost, as a share of the largest: 0.75 is a quarter less."
        ),
    ] = None,
    accuracy_delta: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Best is the cheapest within this of the reference accuracy (LoNAS)."),
    ] = None,
    reference_accuracy: Annotated[
        float | None, typer.Option(min=0, max=1, help="Default: that of the largest sub-network.")
    ] = None,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> Result | None:
    """Find the best sub-network of a super-adapter, unless a subcommand is named.

    It is the most accurate one that meets the constraints, among equals the one that costs less; or, with an accuracy
    delta, the cheapest one whose accuracy is at least the reference less the delta.
    """
    if context.invoked_subcommand is not None:
        return None
    run = require(run, "--run")
    import dataclasses

    from search.screen import summarise
    from search.stage import recipe_rule, recipe_settings
    from search.stage import search as run_search
    from shearling.run import Run

    options: dict[str, Any] = {
        "algorithm": algorithm,
        "evaluations": evaluations,
        "population": population,
        "limit": limit,
        "task": task,
        "seed": seed,
        "batch_size": batch_size,
        "precision": precision,
        "cost": cost,
        "max_cost_share": max_cost_share,
    }
    rule = {
        "min_accuracy": min_accuracy,
        "max_params": max_params,
        "accuracy_delta": accuracy_delta,
        "reference_accuracy": reference_accuracy,
    }
    settings = dataclasses.replace(recipe_settings(Run(run)), **_given(options))
    constraints = dataclasses.replace(recipe_rule(Run(run)), **_given(rule))
    if constraints.reference_accuracy is not None and constraints.accuracy_delta is None:
        raise UsageError("a reference needs a delta", where="--reference-accuracy", remedy="Give --accuracy-delta too")
    return summarise(run_search(Run(run), settings, constraints, force=force))


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


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


if __name__ == "__main__":
    run_command(app, program="python -m search")
