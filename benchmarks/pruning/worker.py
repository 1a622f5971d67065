"""The process of one pruning: what it takes is its own.

    python -m benchmarks.pruning.worker RECIPE RUN [--begin]

prunes the dense model of RUN by a recipe in JSON, and writes the time to stdout, as a line of JSON. `--begin` carries
the whole recipe out, so that the dense model and the data are there, and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pydantic

from benchmarks.command import command
from shearling.command_line import Result, print_result
from shearling.errors import RecipeInvalid
from shearling.recipe.recipe import Recipe
from shearling.run import Run
from shearling.strict_json import read_json


@dataclass(frozen=True)
class Taken:
    """Time of a pruning; see `PruningDocument`."""

    seconds: float
    processor_s: float


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Prune."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pruning.worker", description=main.__doc__)
    parser.add_argument("recipe", type=Path, help="a recipe, as JSON")
    parser.add_argument("run", type=Path, help="its run directory")
    parser.add_argument("--begin", action="store_true", help="carry the whole recipe out")
    options = parser.parse_args(arguments)
    try:
        recipe = Recipe.model_validate(read_json(options.recipe))
    except pydantic.ValidationError as error:
        raise RecipeInvalid(f"the pruner makes no recipe: {error}", where=options.recipe) from None
    if options.begin:
        from train.stage import run_recipe

        run_recipe(recipe, options.run)
        return 0
    taken = prune(recipe, Run(options.run))
    print_result(Result({}, json.dumps(asdict(taken))), as_json=False)
    return 0


def prune(recipe: Recipe, run: Run) -> Taken:
    """Prune the dense model of a run; what any pruning imports is imported before the time begins."""
    from shearling.model.checkpoint import load_tokenizer
    from shearling.model.skeleton import open_skeleton
    from train.stage import make_sparse

    load_tokenizer(run.base)
    open_skeleton(run.base)
    started_s, used_s = time.monotonic(), time.process_time()
    make_sparse(recipe, run.path)
    return Taken(seconds=time.monotonic() - started_s, processor_s=time.process_time() - used_s)


if __name__ == "__main__":
    sys.exit(main())
