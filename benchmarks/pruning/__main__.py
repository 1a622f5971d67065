"""Pruners x ratios, before any training: bits per byte of the task's text and of a general one, time, memory.

    python -m benchmarks.pruning --output runs/pruning [--pruners wanda,healed] [--ratios 0.5,0.6,0.7,2:4]
        [--calibration task,general,both] [--threads 1] [--report]

A cell is one pruner, ratio and calibration text, pruned in a process of its own, so that its memory and its time are
its own; `benchmarks.pruning.pruners` says what the pruners are. Each writes a file when it is finished, so that an
interrupted benchmark goes on with the cell where it stopped. Told are the table and, of every ratio, what brings most
back of what Wanda costs, on the screen and in report.md with pictures; --report tells what is there, and runs nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from benchmarks.command import command
from benchmarks.kept_cells import unfinished_cells
from benchmarks.option_lists import listed, names_of, positive
from benchmarks.pruning.cell import RECIPE_OPTIONS, PruningCell, check_recipes, cross, read_cell
from benchmarks.pruning.pruners import PRUNERS, Reading
from benchmarks.pruning.report import write_report
from benchmarks.quality.arms import parse_ratio
from shearling.command_line import INTERRUPTED, print_result
from shearling.console import log
from shearling.errors import ShearlingError


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the cells that are missing, and tell all that are there."""
    options = _parser().parse_args(arguments)
    try:
        # Whatever is asked for, the report tells all of them.
        check_recipes(options.output, samples=options.samples)
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
        prog="python -m benchmarks.pruning", description=(__doc__ or "").partition("\n")[0]
    )
    readings = dict.fromkeys(get_args(Reading))
    add = parser.add_argument
    add("--output", type=Path, default=Path("runs/pruning"), help="directory of the cells and the report")
    add("--pruners", type=names_of(PRUNERS), default=tuple(PRUNERS), help=f"of {', '.join(PRUNERS)}")
    add("--ratios", type=listed(parse_ratio), default="0.5,0.6,0.7,2:4", help="shares of zeros, or patterns")
    add("--calibration", type=names_of(readings), default="task", help=f"what is read, of {', '.join(readings)}")
    add("--samples", type=positive, help="windows of that text instead of the demo's number")
    add("--threads", type=positive, default=1, help="of each pruning")
    add("--report", action="store_true", help="tell the cells that are there, and run none")
    return parser


def _missing(options: argparse.Namespace) -> list[PruningCell]:
    cells = cross(
        [PRUNERS[name] for name in options.pruners], options.ratios, options.calibration, samples=options.samples
    )
    missing = unfinished_cells(cells, options.output, read_cell, options=RECIPE_OPTIONS)
    log.print(f"{len(cells) - len(missing)} of {len(cells)} cells are there")
    return missing


def _carry_out(options: argparse.Namespace) -> dict[str, ShearlingError]:
    missing = _missing(options)
    # Imports torch, which a report and --help do without.
    from benchmarks.pruning.carry_out import carry_out_all

    return carry_out_all(missing, options.output, threads=options.threads)


if __name__ == "__main__":
    sys.exit(main())
