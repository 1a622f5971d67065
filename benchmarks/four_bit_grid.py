"""How near a model's weights lie to a grid of four bits, to which rounding would return them for nothing.

    python -m benchmarks.four_bit_grid runs/demo/base runs/demo/adapted

A model that was expanded from a file of four bits looks better in four bits than one that never was in any. Every group
of 32 weights of the transformer layers is rounded to the nearest: with a least value and a step, as Q4_1 of llama.cpp
has them, and with a scale alone, as Q4_0 has it. Beside that error stands the one of the same weights moved by chance
within their step, which lie on no grid. Their ratio is 0 % for a model on such a grid, and 100 % for one that has
nothing from it. Pruned weights are no matter of rounding, and left out. The table goes to stdout as Markdown.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.command import command
from benchmarks.markdown_table import markdown_table
from shearling.errors import UsageError
from shearling.model.checkpoint import load_model
from shearling.model.layers import find_layers

GROUP = 32
SEED = 0
LEAST_STEP = 1e-12
"""For groups whose weights are all the same."""


@dataclass(frozen=True)
class GridError:
    """What rounding to four bits changes, as a share of the size of the weights.

    Attributes:
        rounded: root of the mean square of the error over that of the weights.
        free: the same of the weights moved by chance within a step.
    """

    rounded: float
    free: float

    @property
    def share(self) -> float:
        """0 on the grid, 1 with nothing from it."""
        return self.rounded / self.free


def step_of(groups: Tensor) -> Tensor:
    """From one of sixteen levels between the least and the greatest to the next, [groups, 1]."""
    return ((groups.amax(-1, keepdim=True) - groups.amin(-1, keepdim=True)) / 15).clamp_min(LEAST_STEP)


def round_from_least(groups: Tensor) -> Tensor:
    """Rounded to sixteen levels from the least weight of a group to the greatest, [groups, 32]."""
    least, step = groups.amin(-1, keepdim=True), step_of(groups)
    return least + step * ((groups - least) / step).round()


def round_by_scale(groups: Tensor) -> Tensor:
    """Rounded to -8 to 7 times a scale by which the weight of the greatest size is -8, [groups, 32]."""
    greatest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    scale = torch.where(greatest == 0, LEAST_STEP, greatest / -8)
    return scale * (groups / scale).round().clamp(-8, 7)


GRIDS: dict[str, Callable[[Tensor], Tensor]] = {"a least value and a step": round_from_least, "a scale": round_by_scale}


def measure(directory: Path) -> dict[str, GridError]:
    """The error of each grid.

    Raises:
        UsageError: no layer is as wide as a multiple of a group.
        ShearlingError: the model does not load.
    """
    generator = torch.Generator().manual_seed(SEED)
    rounded, free = dict.fromkeys(GRIDS, 0.0), dict.fromkeys(GRIDS, 0.0)
    size = 0.0
    for linear in find_layers(load_model(directory)).linears().values():
        weight = linear.weight.detach()
        if weight.shape[1] % GROUP:
            continue
        groups = weight.reshape(-1, GROUP)
        kept = groups != 0
        moved = groups + (torch.rand(groups.shape, generator=generator) - 0.5) * step_of(groups)
        size += groups.square().sum().item()
        for name, grid in GRIDS.items():
            rounded[name] += ((groups - grid(groups)) * kept).square().sum().item()
            free[name] += ((moved - grid(moved)) * kept).square().sum().item()
    if not size:
        raise UsageError(f"no linear layer is as wide as a multiple of {GROUP}", where=str(directory))
    return {name: GridError((rounded[name] / size) ** 0.5, (free[name] / size) ** 0.5) for name in GRIDS}


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Tell how near models lie to a grid of four bits."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.four_bit_grid", description=main.__doc__)
    parser.add_argument("models", nargs="+", type=Path, help="torch model directories")
    options = parser.parse_args(arguments)
    rows = [
        [str(directory), name, f"{error.rounded:.2%}", f"{error.free:.2%}", f"{error.share:.0%}"]
        for directory in options.models
        for name, error in measure(directory).items()
    ]
    headings = ("model", "a group has", "error", "on no grid", "of that")
    sys.stdout.write(markdown_table(headings, rows, words=("model", "a group has")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
