"""Methods x ratios x tasks x seeds: accuracy after training, bits per byte of general text, time.

    python -m benchmarks.quality --output runs/quality [--models smollm2,minilm] [--methods dense,wanda]
        [--ratios 0.5,0.6,0.7,2:4] [--tasks sarcasm,stories] [--seeds 0,1,2] [--report]

A cell is one model, method, ratio, task and seed; `benchmarks.quality.arms` says what the methods are. Each writes a
file when it is finished, so that an interrupted benchmark goes on with the cell where it stopped. Told are the means,
on the screen and in report.md with a picture of each model; --report tells what is there, and runs nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.command import command
from benchmarks.option_lists import listed, names_of
from benchmarks.quality.arms import ARMS, parse_ratio
from benchmarks.quality.cell import Cell, check_recipes, cross, unfinished
from benchmarks.quality.models import MODELS
from benchmarks.quality.report import write_report
from benchmarks.quality.tasks import TASKS
from shearling.command_line import INTERRUPTED, print_result
from shearling.console import log
from shearling.errors import ShearlingError
from shearling.executors.executor import Workforce, check_workforce
from shearling.registry.executors import EXECUTORS
from shearling.registry.runtimes import RUNTIMES
from shearling.virtual_environment import require_packages


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the cells that are missing, and tell all that are there."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        # Whatever is asked for, the report tells all of them.
        check_recipes(options.output, steps=options.steps, test_rows=options.test_rows)
        failed = {} if options.report else _carry_out(options)
        print_result(write_report(options.output), as_json=False)
    except KeyboardInterrupt:
        log.print("interrupted: finished cells are kept, the same command runs the others")
        return INTERRUPTED
    for name, cause in failed.items():
        log.print(f"failed: {name}: {cause}", style="red")
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add("--output", type=Path, default=Path("runs/quality"), help="directory of the cells and the report")
    add("--models", type=names_of(MODELS), default=tuple(MODELS), help=f"of {', '.join(MODELS)}")
    add("--methods", type=names_of(ARMS), default=tuple(ARMS), help=f"of {', '.join(ARMS)}")
    add("--ratios", type=listed(parse_ratio), default="0.5,0.6,0.7,2:4", help="shares of zeros, or patterns")
    add("--tasks", type=names_of(TASKS), default=tuple(TASKS), help=f"of {', '.join(TASKS)}")
    add("--seeds", type=listed(int), default="0,1,2", help="of pruning, training and search")
    add("--steps", type=int, help="of every training instead of the model's own: for a trial")
    add("--test-rows", type=int, help="instead of a task's own: for a trial")
    add("--keep", action="store_true", help="leave the models of finished cells: a gigabyte each")
    add("--llama-cpp", type=Path, help="environment that has it (benchmarks.peers build), for what others serve")
    add("--executor", choices=EXECUTORS.names(), default="local", help="what measures the candidates of searches")
    add("--workers", type=int, help="of the executor; default: as many as there is room for")
    add("--threads", type=int, help="of each worker")
    add("--address", help="of a Ray cluster")
    add("--report", action="store_true", help="tell the cells that are there, and run none")
    return parser


def _missing(options: argparse.Namespace) -> list[Cell]:
    cells = cross(
        [MODELS[name]() for name in options.models],
        [TASKS[name]() for name in options.tasks],
        options.seeds,
        options.ratios,
        [ARMS[name] for name in options.methods],
        steps=options.steps,
        test_rows=options.test_rows,
    )
    missing = unfinished(cells, options.output, llama_cpp=options.llama_cpp is not None)
    log.print(f"{len(cells) - len(missing)} of {len(cells)} cells are there")
    return missing


def _carry_out(options: argparse.Namespace) -> dict[str, ShearlingError]:
    if options.llama_cpp is not None:
        # Before hours of training.
        require_packages(RUNTIMES.get("gguf"), options.llama_cpp)
    missing = _missing(options)
    # Imports torch, which a report and --help do without.
    from benchmarks.quality.carry_out import carry_out_all

    workforce = Workforce(options.executor, options.workers, options.threads, address=options.address)
    check_workforce(workforce)
    return carry_out_all(missing, options.output, keep=options.keep, workforce=workforce, llama_cpp=options.llama_cpp)


if __name__ == "__main__":
    sys.exit(main())
