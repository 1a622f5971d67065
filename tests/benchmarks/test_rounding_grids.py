"""What a grid costs, against sums by hand and the exports' own rounding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.rounding_grids import (
    OURS,
    fit_levels,
    grids,
    longer_end,
    measure,
    round_from_least,
    round_to_levels,
)
from shearling.errors import UsageError
from shearling.model.checkpoint import save_model
from shearling.model.layers import find_layers
from shearling.quantization.rounding import fit_scales, nearest
from tests.support.tiny_models import tiny_tokenizer, wide_model

SIZE = 32


def saved(directory: Path, *, zeros: float) -> tuple[Path, list[Tensor]]:
    """A model of normal weights, and its matrices in groups."""
    model, matrices = wide_model(), []
    generator = torch.Generator().manual_seed(1)
    for linear in find_layers(model).linears().values():
        weight = torch.randn(linear.weight.shape, generator=generator)
        weight *= torch.rand(weight.shape, generator=generator) >= zeros
        linear.weight = nn.Parameter(weight)
        matrices.append(weight.reshape(-1, SIZE))
    save_model(model, tiny_tokenizer(), directory)
    return directory, matrices


def test_ours_is_the_grid_of_exports(tmp_path: Path) -> None:
    directory, matrices = saved(tmp_path / "model", zeros=0.5)
    error = size = 0.0
    for groups in matrices:
        scales = fit_scales(groups, torch.ones(SIZE))[:, None]
        error += (nearest(groups, scales, bits=4) * scales - groups).square().sum().item()
        size += groups.square().sum().item()
    assert measure(directory, SIZE)[OURS].error == pytest.approx(error / size, rel=1e-3)


def test_more_numbers_are_nearer_and_a_fitted_table_is_nearer_than_equal_steps(tmp_path: Path) -> None:
    found = measure(saved(tmp_path / "model", zeros=0.5)[0], SIZE)
    error = {name: figures.error for name, figures in found.items()}
    assert error["-16 to 16"] < 0.4 * error["-8 to 8"] < 0.4 * error[OURS] < 0.2 * error["-4 to 4"]
    assert error["16 fitted, and zero"] < 0.95 * error[OURS]
    assert error["8 fitted, and zero"] < error["-4 to 4"]


@pytest.mark.parametrize("zeros", [0.0, 0.5])
def test_bits_are_those_of_the_mask_the_numbers_and_the_scales(tmp_path: Path, zeros: float) -> None:
    directory, matrices = saved(tmp_path / "model", zeros=zeros)
    found = measure(directory, SIZE)
    # No odd number is zero, so every weight that is left is stored.
    kept = sum(int((groups != 0).sum()) for groups in matrices) / sum(groups.numel() for groups in matrices)
    mask = 1 if zeros else 0
    assert found["-15 to 15, odd"].bits == pytest.approx(mask + 4 * kept + 8 / SIZE)
    least = found["16 steps from a least value"].bits
    assert least <= mask + 4 * kept + 16 / SIZE
    assert least > found[OURS].bits


def test_levels_are_reached_and_zero_stays_one() -> None:
    groups = torch.tensor([[-8.0, 7.0, 3.0, 0.4], [0.0, 0.0, 0.0, 0.0], [0.6, 16.0, -14.0, 4.4]])
    levels = torch.arange(-8.0, 8.0)
    expected = torch.tensor([[-8.0, 7.0, 3.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 16.0, -14.0, 4.0]])
    assert torch.equal(longer_end(groups)[::2], torch.tensor([[8.0], [-16.0]]))
    assert torch.equal(round_to_levels(groups, levels=levels, share=1.0), expected)


def test_steps_from_a_least_value_leave_pruned_weights_out_and_reach_zero() -> None:
    groups = torch.tensor([[0.0, 10.0, 25.0, 12.0], [-0.1, 8.0, 15.0, 0.0]])
    rounded = round_from_least(groups, numbers=16, share=1.0)
    # Steps of 1 from 10 on, and of 15.1 / 15 from -0.1 on; what is nearer to zero than to a step becomes zero.
    torch.testing.assert_close(rounded, torch.tensor([[0.0, 10.0, 25.0, 12.0], [-0.1, 119.3 / 15, 15.0, 0.0]]))


def test_fitted_levels_find_what_weights_are() -> None:
    """Zero is one of them, although no weight is."""
    wanted = torch.tensor([-127.0, -90, -60, -30, 30, 60, 90, 118])
    levels = fit_levels((wanted / 127).repeat(100), bits=3)
    assert torch.equal(levels, torch.cat([wanted[:4], torch.zeros(1), wanted[4:]]))


def test_every_grid_has_the_numbers_of_its_bits() -> None:
    for name, grid in grids({bits: torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1) + 1.0) for bits in (3, 4)}).items():
        groups = torch.linspace(-1, 1, 10_001)[None]
        numbers = set(grid.rounding(groups, share=1.0).unique().tolist()) - {0.0}
        assert len(numbers) <= 2**grid.bits, name


def test_a_group_that_fits_no_layer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="as wide as a multiple of 1000"):
        measure(saved(tmp_path / "model", zeros=0.5)[0], 1000)
