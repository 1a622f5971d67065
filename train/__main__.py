"""`python -m train`: from a recipe to a super-adapter on a pruned model; `tune` trains what a search has found
further.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from shearling.command_line import (
    DebugFlag,
    DryRunFlag,
    ForceFlag,
    JsonFlag,
    Result,
    make_app,
    require,
    run_command,
    share_processors,
)

app = make_app("Carry out a recipe: split the data, import and prune the base, train the super-adapter.")


@app.callback(invoke_without_command=True)
def train(
    context: typer.Context,
    recipe: Annotated[Path | None, typer.Option(help="The TOML recipe; see recipes/.")] = None,
    output: Annotated[Path | None, typer.Option(help="The run directory; an interrupted run continues.")] = None,
    dry_run: DryRunFlag = False,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> Result | None:
    """Carry out a recipe, unless a subcommand is named."""
    share_processors()
    if context.invoked_subcommand is not None:
        return None
    recipe, output = require(recipe, "--recipe"), require(output, "--output")
    from shearling.recipe.recipe import read_recipe
    from train.super_adapter import processes

    processes.silence_others()
    wanted = read_recipe(recipe)
    # After the recipe was read: a wrong one is refused before the libraries load.
    from train.screen import summarise
    from train.stage import estimate_recipe, run_recipe

    if dry_run:
        from shearling.dry_run import show_estimates

        return show_estimates(estimate_recipe(wanted), output)
    made = run_recipe(wanted, output, force=force)
    if not processes.is_main():
        raise typer.Exit
    return summarise(output, made)


@app.command()
def variants(
    recipe: Annotated[Path, typer.Option(help="The recipe of the run, with [variants].", show_default=False)],
    output: Annotated[Path, typer.Option(help="The run directory, with a pruned model.", show_default=False)],
    force: ForceFlag = False,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> Result:
    """Prune the layers of a run again, with more zeros, for `python -m search --ratios`; all else stays."""
    from shearling.recipe.recipe import read_recipe

    wanted = read_recipe(recipe)
    from train.screen import summarise_variants
    from train.stage import make_variants

    return summarise_variants(make_variants(wanted, output, force=force)["variants"])


@app.command()
def tune(
    subnet: Annotated[
        Path,
        typer.Option(help="best.json of a search, or what `python -m search pick` wrote.", show_default=False),
    ],
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.", show_default=False)],
    learning_rate: Annotated[
        float, typer.Option(min=0.0, help="Below that of the training: the adapter is good already.")
    ] = 2e-4,
    name: Annotated[
        str, typer.Option(help="Of the new adapter, beside the old one in the run; NAME.json describes it.")
    ] = "tuned",
    teacher: Annotated[
        Path | None, typer.Option(help="The model that train.teacher.path named, where the adapter had such a teacher.")
    ] = None,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> Result:
    """Train one sub-network of a super-adapter further, alone, so that it owes the others nothing.

    It becomes RUN/NAME, and RUN/NAME.json describes it for `python -m export --subnet`.
    """
    from shearling.elastic.subnet import open_subnet
    from train.screen import summarise_tuned
    from train.super_adapter import processes
    from train.super_adapter.tune import tune_subnet

    processes.silence_others()
    document = tune_subnet(
        open_subnet(subnet), steps=steps, learning_rate=learning_rate, name=name, teacher=teacher, force=force
    )
    if not processes.is_main():
        raise typer.Exit
    return summarise_tuned(document, subnet=subnet, steps=steps)


def main() -> NoReturn:
    """The console script, which finds this stage from any directory."""
    run_command(app, program="shearling-train")


if __name__ == "__main__":
    run_command(app, program="python -m train")
