"""Which numbers a few bits should stand for, where zeros are in a mask and need none of them.

    python -m benchmarks.rounding_grids runs/demo/export/model --group-size 64

Every group of weights of the transformer layers is rounded to the nearest number of several grids, each times the best
of twelve scales, as exports try them (`shearling.quantization.rounding`). Pruned weights stay zero; a weight that is
left may become zero in every grid, since the mask holds that too. The error is that of the weights alone, without the
text that exports look at, and is told beside the one of the grid that exports have. Bits are those of a weight, pruned
ones counted: the mask, the numbers that are stored, and for each group a byte for the scale and another for the least
value, where a grid has one. The table goes to stdout as Markdown.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from benchmarks.command import command
from benchmarks.markdown_table import markdown_table
from export.quantization.settings import GROUP_SIZES
from shearling.errors import UsageError
from shearling.model.checkpoint import load_model
from shearling.model.layers import find_layers
from shearling.quantization.rounding import LARGEST_SHRINKAGE, SHRINKAGES, SMALLEST_SHRINKAGE

OURS = "-8 to 7"
LEAST_STEP = 1e-12
"""For groups whose weights are all the same."""
FITTING_STEPS = 30
FITTED_WEIGHTS = 400_000
SEED = 0


class Rounding(Protocol):
    """Rounds to a grid."""

    def __call__(self, groups: Tensor, *, share: float) -> Tensor:
        """Groups [n, size], rounded, with scales that are the given share of those that reach the largest weight."""


@dataclass(frozen=True)
class Grid:
    """What weights may become.

    Attributes:
        bits: of a number that is stored.
        group_bytes: that a group has beside its numbers.
        rounding: to it.
    """

    bits: int
    group_bytes: int
    rounding: Rounding


@dataclass(frozen=True)
class GridFigures:
    """What a grid costs.

    Attributes:
        bits: of a weight, pruned ones counted.
        error: the square of it, as a share of the weights' squares.
    """

    bits: float
    error: float


def longer_end(groups: Tensor) -> Tensor:
    """The weight of the largest size, its sign turned: what the least number of a grid stands for, [n, 1]."""
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    return torch.where(largest == 0, LEAST_STEP, -largest)


def round_to_levels(groups: Tensor, *, levels: Tensor, share: float) -> Tensor:
    """Each weight becomes the nearest level times the scale of its group.

    Args:
        groups: [n, size].
        levels: sorted, the first of the largest size.
        share: of the scale by which the first one reaches the largest weight.
    """
    scale = share * longer_end(groups) / levels.abs().max()
    return levels[torch.bucketize(groups / scale, (levels[1:] + levels[:-1]) / 2)] * scale


def round_from_least(groups: Tensor, *, numbers: int, share: float) -> Tensor:
    """Each weight becomes the nearest of equal steps from a least value on, or zero.

    Args:
        groups: [n, size]; zeros have no say in where the steps lie.
        numbers: of steps.
        share: of the span from the least weight to the largest.
    """
    kept = groups != 0
    low = torch.where(kept, groups, torch.inf).amin(-1, keepdim=True).nan_to_num(posinf=0)
    high = torch.where(kept, groups, -torch.inf).amax(-1, keepdim=True).nan_to_num(neginf=0)
    step = (share * (high - low) / (numbers - 1)).clamp_min(LEAST_STEP)
    least = (low + high - (numbers - 1) * step) / 2
    rounded = least + step * ((groups - least) / step).round().clamp(0, numbers - 1)
    return torch.where(groups.abs() < (rounded - groups).abs(), 0.0, rounded)


def fit_levels(weights: Tensor, *, bits: int) -> Tensor:
    """As many levels as there are numbers, and zero beside them, which squares of errors are least with (Lloyd).

    Args:
        weights: as shares of what the least level stands for, so from -1 to 1.
        bits: of a number.
    """
    levels = torch.linspace(-1, 1, 2**bits + 1)
    for _ in range(FITTING_STEPS):
        nearest = torch.bucketize(weights, (levels[1:] + levels[:-1]) / 2)
        sums = torch.zeros_like(levels).index_add(0, nearest, weights)
        counts = torch.bincount(nearest, minlength=len(levels))
        levels = torch.where(counts > 0, sums / counts.clamp_min(1), levels)
        levels[levels.abs().argmin()] = 0
    # As a table of bytes has them.
    return (levels * 127 / levels.abs().max()).round()


def grids(fitted: Mapping[int, Tensor]) -> dict[str, Grid]:
    """By name.

    Args:
        fitted: bits -> `fit_levels`.
    """

    def by_scale(bits: int, levels: Tensor) -> Grid:
        return Grid(bits, 1, partial(round_to_levels, levels=levels))

    def whole(least: int, largest: int, step: int = 1) -> Tensor:
        return torch.arange(least, largest + 1, step, dtype=torch.float32)

    return {
        OURS: by_scale(4, whole(-8, 7)),
        "-8 to 8": by_scale(4, whole(-8, 8)),
        "-15 to 15, odd": by_scale(4, whole(-15, 15, 2)),
        "16 fitted, and zero": by_scale(4, fitted[4]),
        "16 steps from a least value": Grid(4, 2, partial(round_from_least, numbers=16)),
        "-4 to 4": by_scale(3, whole(-4, 4)),
        "8 fitted, and zero": by_scale(3, fitted[3]),
        "8 steps from a least value": Grid(3, 2, partial(round_from_least, numbers=8)),
        "-16 to 16": by_scale(5, whole(-16, 16)),
    }


def measure(directory: Path, group_size: int) -> dict[str, GridFigures]:
    """What each grid costs.

    Raises:
        UsageError: no layer is as wide as a multiple of a group.
        ShearlingError: the model does not load.
    """
    matrices = list(_groups(directory, group_size))
    if not matrices:
        raise UsageError(f"no linear layer is as wide as a multiple of {group_size}", where=str(directory))
    sample = _sample(matrices)
    found = {}
    for name, grid in grids({bits: fit_levels(sample, bits=bits) for bits in (3, 4)}).items():
        error = size = 0.0
        stored = weights = pruned = 0
        for groups in matrices:
            rounded = _best(groups, grid)
            error += (rounded - groups).square().sum().item()
            size += groups.square().sum().item()
            weights += groups.numel()
            pruned += int((groups == 0).sum())
            stored += int((rounded != 0).sum())
        mask = 1 if pruned else 0
        bits = mask + grid.bits * (stored if pruned else weights) / weights + 8 * grid.group_bytes / group_size
        found[name] = GridFigures(bits, error / size)
    return found


def _groups(directory: Path, group_size: int) -> Iterator[Tensor]:
    for linear in find_layers(load_model(directory)).linears().values():
        weight = linear.weight.detach().float()
        if weight.shape[1] % group_size == 0 and weight.any():
            yield weight.reshape(-1, group_size)


def _sample(matrices: Sequence[Tensor]) -> Tensor:
    """Weights of all matrices alike, as shares of what the least level stands for."""
    generator = torch.Generator().manual_seed(SEED)
    taken = []
    for groups in matrices:
        shares = (groups / longer_end(groups))[groups != 0]
        places = torch.randint(len(shares), (FITTED_WEIGHTS // len(matrices),), generator=generator)
        taken.append(shares[places])
    return torch.cat(taken)


def _best(groups: Tensor, grid: Grid) -> Tensor:
    kept = groups != 0
    chosen, least = torch.zeros_like(groups), torch.full((len(groups), 1), torch.inf)
    for share in torch.linspace(SMALLEST_SHRINKAGE, LARGEST_SHRINKAGE, SHRINKAGES).tolist():
        rounded = grid.rounding(groups, share=share) * kept
        error = (rounded - groups).square().sum(-1, keepdim=True)
        chosen, least = torch.where(error < least, rounded, chosen), torch.minimum(error, least)
    return chosen


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Tell what rounding a model to several grids costs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rounding_grids", description=main.__doc__)
    parser.add_argument("model", type=Path, help="a torch model directory")
    parser.add_argument("--group-size", type=int, choices=GROUP_SIZES, default=64, help="columns that share a scale")
    options = parser.parse_args(arguments)
    found = measure(options.model, options.group_size)
    ours = found[OURS].error
    rows = [
        [name, f"{figures.bits:.2f}", f"{figures.error:.2%}", f"{figures.error / ours:.2f}"]
        for name, figures in found.items()
    ]
    sys.stdout.write(markdown_table(("numbers", "bits a weight", "error", "times ours"), rows, words=("numbers",)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
