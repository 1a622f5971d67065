"""How near weights lie to a grid of four bits: on it, beside it, and far from it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import four_bit_grid
from benchmarks.four_bit_grid import GROUP, measure, round_by_scale, round_from_least
from shearling.model.checkpoint import save_model
from shearling.model.layers import find_layers
from tests.support.tiny_models import tiny_tokenizer, wide_model

LEAST, SCALE = four_bit_grid.GRIDS


def saved(directory: Path, *, grid: str | None, moved: float = 0.0, zeros: bool = False) -> Path:
    """A model whose linears lie on a grid, or beside it by as much of their own size."""
    model = wide_model()
    generator = torch.Generator().manual_seed(1)
    for linear in find_layers(model).linears().values():
        groups = torch.randn(linear.weight.shape, generator=generator).reshape(-1, GROUP)
        on_it = groups if grid is None else four_bit_grid.GRIDS[grid](groups)
        on_it += moved * torch.randn(groups.shape, generator=generator)
        if zeros:
            on_it *= torch.rand(groups.shape, generator=generator) < 0.5
        linear.weight = nn.Parameter(on_it.reshape(linear.weight.shape))
    save_model(model, tiny_tokenizer(), directory)
    return directory


@pytest.mark.parametrize("grid", [LEAST, SCALE])
def test_a_model_on_a_grid_has_nothing_to_lose_there(tmp_path: Path, grid: str) -> None:
    found = measure(saved(tmp_path / "model", grid=grid))
    other = LEAST if grid == SCALE else SCALE
    assert found[grid].share < 0.02
    assert found[other].share > 0.8


def test_what_was_moved_by_more_than_a_step_has_left_it(tmp_path: Path) -> None:
    near = measure(saved(tmp_path / "near", grid=LEAST, moved=0.02))[LEAST]
    far = measure(saved(tmp_path / "far", grid=LEAST, moved=0.5))[LEAST]
    assert 0.1 < near.share < 0.5
    assert 0.95 < far.share < 1.05


def test_a_model_on_no_grid_has_the_error_of_one(tmp_path: Path) -> None:
    for error in measure(saved(tmp_path / "model", grid=None)).values():
        assert 0.95 < error.share < 1.05
        # A step of a fifteenth of 4.1 standard deviations, and an error that is even within it.
        assert 0.06 < error.rounded < 0.10


def test_pruned_weights_are_no_matter_of_rounding(tmp_path: Path) -> None:
    """On a grid from the least weight zeros would be moved as the others are, and the error be 1.4 times as large."""
    found = measure(saved(tmp_path / "model", grid=None, zeros=True))[LEAST]
    assert 0.9 < found.share < 1.1
    assert found.rounded < 0.08


def test_groups_of_one_weight_stay_as_they_are() -> None:
    for same in (torch.zeros(1, GROUP), torch.full((1, GROUP), -3.0)):
        assert torch.equal(round_from_least(same), same)
        assert torch.equal(round_by_scale(same), same)


def test_the_command_tells_a_line_of_every_model_and_grid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = saved(tmp_path / "model", grid=LEAST)
    assert four_bit_grid.main([str(directory)]) == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[1].strip() for row in rows] == [LEAST, SCALE]
    assert rows[0][-1].strip() in ("0%", "1%")
    assert four_bit_grid.main([str(tmp_path / "none")]) == 3
