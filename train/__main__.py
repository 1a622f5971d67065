"""`python -m train`: from a recipe to a super-adapter on a pruned model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shearling.command_line import DebugFlag, ForceFlag, JsonFlag, Result, make_app, run_command

app = make_app("Sparsify a model and train its elastic adapters.")


@app.command()
def train(
    recipe: Annotated[Path, typer.Option(help="The TOML recipe; see recipes/.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The run directory; an interrupted run continues.", show_default=False)],
    force: ForceFlag = False,
    as_json: JsonFlag = False,
    debug: DebugFlag = False,
) -> Result:
    """Carry out a recipe: split the data, import and prune the base, train the super-adapter."""
    from shearling.recipe import read_recipe
    from train.screen import summarise
    from train.stage import run_recipe
    from train.super_adapter import processes

    processes.silence_others()
    made = run_recipe(read_recipe(recipe), out, force=force)
    if not processes.is_main():
        raise typer.Exit
    return summarise(out, made)


if __name__ == "__main__":
    run_command(app, program="python -m train")
