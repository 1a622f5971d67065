"""Rounding to four bits: against its definition, against every neighbour, and never a zero lost."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from shearling.calibration.gram import layer_error
from shearling.kernel.packed_scales import ScaleType, smallest_scales
from shearling.quantization.rounding import (
    LIMITS,
    Rounded,
    compensate,
    descend,
    fit_scales,
    in_bytes,
    refit,
    rescale,
    round_matrix,
    storable,
)

LEAST, MOST = LIMITS[4]


def layer(columns: int, *, out: int = 10, seed: int = 0, share: float = 0.5) -> tuple[Tensor, Tensor]:
    """A weight with zeros, and X^T X of inputs whose channels move together; in float64."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns // 2, columns, generator=generator, dtype=torch.float64)
    inputs = torch.randn(400, columns // 2, generator=generator, dtype=torch.float64) @ mixing
    inputs += 0.5 * torch.randn(400, columns, generator=generator, dtype=torch.float64)
    weight = 0.05 * torch.randn(out, columns, generator=generator, dtype=torch.float64)
    weight[torch.rand(weight.shape, generator=generator) < share] = 0
    return weight, inputs.T @ inputs / 400


def slope_of(rounded: Rounded, weight: Tensor, hessian: Tensor) -> Tensor:
    return (rounded.weight - weight) @ hessian


def nearest(weight: Tensor, hessian: Tensor, group: int) -> Tensor:
    """Every weight by itself, at scales of the same choice."""
    parts = []
    for start in range(0, weight.shape[1], group):
        place = slice(start, start + group)
        scale = fit_scales(weight[:, place], hessian.diagonal()[place])[:, None]
        parts.append((weight[:, place] / scale).round().clamp(LEAST, MOST) * scale)
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize(("columns", "group"), [(32, 32), (64, 16), (192, 32)])
def test_compensated_integers_are_those_of_the_definition(columns: int, group: int) -> None:
    """Columns settled one after another, each inverse of H computed anew."""
    weight, hessian = layer(columns)
    kept = weight != 0
    rounded = compensate(weight, kept, hessian, group_size=group)
    updated = weight.clone()
    for column in range(columns):
        inverse = torch.linalg.inv(hessian[column:, column:])
        scale = rounded.scales[:, column // group]
        code = (updated[:, column] / scale).round().clamp(LEAST, MOST) * kept[:, column]
        assert torch.equal(code, rounded.codes[:, column])
        error = updated[:, column] - code * scale
        updated[:, column:] -= error[:, None] / inverse[0, 0] * inverse[0]


@pytest.mark.parametrize("seed", range(4))
def test_each_step_lowers_the_error(seed: int) -> None:
    weight, hessian = layer(128, seed=seed)
    kept = weight != 0
    rounded = compensate(weight, kept, hessian, group_size=32)
    errors = [layer_error(weight, nearest(weight, hessian, 32), hessian.float())]
    errors.append(layer_error(weight, rounded.weight, hessian.float()))
    slope = slope_of(rounded, weight, hessian)
    for _ in range(2):
        refit(rounded, slope, hessian)
        errors.append(layer_error(weight, rounded.weight, hessian.float()))
        descend(rounded, slope, kept, hessian)
        errors.append(layer_error(weight, rounded.weight, hessian.float()))
    # A refitted scale is rounded to float16, which can cost a thousandth.
    assert all(after <= 1.001 * before for before, after in itertools.pairwise(errors[1:]))
    assert errors[-1] < 0.7 * errors[0]


def test_the_slope_stays_that_of_the_rounded_matrix() -> None:
    weight, hessian = layer(256)
    rounded = compensate(weight, weight != 0, hessian, group_size=64)
    slope = slope_of(rounded, weight, hessian)
    refit(rounded, slope, hessian)
    assert torch.allclose(slope, slope_of(rounded, weight, hessian), atol=1e-9)
    descend(rounded, slope, weight != 0, hessian)
    assert torch.allclose(slope, slope_of(rounded, weight, hessian), atol=1e-9)


def test_in_the_end_no_single_integer_could_be_better() -> None:
    weight, hessian = layer(32, out=4)
    kept = weight != 0
    rounded = compensate(weight, kept, hessian, group_size=16)
    slope = slope_of(rounded, weight, hessian)
    for _ in range(20):
        descend(rounded, slope, kept, hessian)

    def cost(codes: Tensor) -> Tensor:
        difference = Rounded(codes, rounded.scales, 16).weight - weight
        return ((difference @ hessian) * difference).sum(dim=1)

    best = cost(rounded.codes)
    for row, column in zip(*torch.nonzero(kept, as_tuple=True), strict=True):
        for code in range(LEAST, MOST + 1):
            changed = rounded.codes.clone()
            changed[row, column] = code
            assert cost(changed)[row] >= best[row] - 1e-12


def test_refitted_scales_are_those_of_least_squares() -> None:
    weight, hessian = layer(32)
    rounded = compensate(weight, weight != 0, hessian, group_size=32)
    refit(rounded, slope_of(rounded, weight, hessian), hessian)
    factor = torch.linalg.cholesky(hessian, upper=True)
    for row in range(len(weight)):
        design, wanted = factor @ rounded.codes[row, :, None], factor @ weight[row, :, None]
        expected = torch.linalg.lstsq(design, wanted).solution.item()
        assert rounded.scales[row, 0].item() == pytest.approx(expected, rel=2**-11)


def test_a_scale_that_would_be_nothing_stays_what_it_was() -> None:
    """The best scale of integers for a weight of zeros is zero, which cannot be told from no scale at all."""
    hessian, codes = torch.eye(4), torch.tensor([[1.0, -2.0, 3.0, 0.0]])
    rounded = Rounded(codes, torch.tensor([[0.5]]), 4)
    refit(rounded, rounded.weight @ hessian, hessian)
    assert rounded.scales.tolist() == [[0.5]]
    assert storable(torch.tensor([1e-9, 1e9, 0.3]), otherwise=torch.tensor([2.0, 3.0, 4.0])).tolist() == [
        2.0,
        3.0,
        torch.tensor(0.3).half().item(),
    ]


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_zeros_stay_and_all_can_be_stored(share: float) -> None:
    weight, hessian = (tensor.float() for tensor in layer(64, share=share))
    weight[2, :32] = 0
    rounded = round_matrix(weight, hessian, group_size=32, passes=2)
    assert not rounded.codes[weight == 0].any()
    assert torch.equal(rounded.codes, rounded.codes.round().clamp(LEAST, MOST))
    assert torch.equal(rounded.scales, rounded.scales.half().float())
    assert rounded.scales.ne(0).all()
    assert rounded.scales.isfinite().all()


@pytest.mark.parametrize("size", [1e-3, 1e-7, 10.0, 3e4])
def test_scales_in_bytes_are_near_and_stored_as_such(size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    scales = (torch.randn(50, 64, generator=generator) * size).half().float().clamp(-65504, 65504)
    scales[0], scales[1, 1:] = 65504.0, 2.0**-24  # the largest, and one far above the rest
    scales[scales == 0] = 2.0**-24
    rounded = in_bytes(scales)
    assert smallest_scales(rounded.half().numpy(), ScaleType.F16) is ScaleType.I8
    assert torch.equal(rounded.half().float(), rounded)
    assert torch.equal(rounded.sign(), scales.sign())
    # Steps are a 113th of the largest or less; what is less than one step is one.
    step = (scales.abs().amax(dim=1, keepdim=True) / 112).clamp_min(2.0**-24)
    assert ((rounded - scales).abs() <= step).all()


def test_few_scales_of_a_row_stay_as_they_are() -> None:
    scales = torch.rand(8, 4).half().float() + 0.5
    assert torch.equal(in_bytes(scales), scales)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_scales_in_bytes_cost_next_to_nothing(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hessian = (tensor.float() for tensor in layer(256, share=share))
    rounded = round_matrix(weight, hessian, group_size=32, passes=2)
    assert smallest_scales(rounded.scales.half().numpy(), ScaleType.F16) is ScaleType.I8
    monkeypatch.setattr("shearling.quantization.rounding.in_bytes", lambda scales: scales)
    free = round_matrix(weight, hessian, group_size=32, passes=2)
    assert smallest_scales(free.scales.half().numpy(), ScaleType.F16) is ScaleType.F16
    assert layer_error(weight, rounded.weight, hessian) < 1.02 * layer_error(weight, free.weight, hessian)


def test_an_empty_group_costs_the_others_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does one whose scale no float16 can hold."""
    weight, hessian = (tensor.float() for tensor in layer(256, share=0.0))
    weight[2, :32], weight[3, :32] = 0, weight[3, :32] * 1e-9
    rounded = round_matrix(weight, hessian, group_size=32, passes=2)
    assert smallest_scales(rounded.scales.half().numpy(), ScaleType.F16) is ScaleType.I8
    monkeypatch.setattr("shearling.quantization.rounding.in_bytes", lambda scales: scales)
    free = round_matrix(weight, hessian, group_size=32, passes=2)
    for row in (2, 3):
        here = slice(row, row + 1)
        of_free = layer_error(weight[here], free.weight[here], hessian)
        assert layer_error(weight[here], rounded.weight[here], hessian) < 1.05 * of_free


def test_a_row_of_zeros_has_scales_that_can_be_stored() -> None:
    weight, hessian = (tensor.float() for tensor in layer(256))
    weight[2] = 0
    rounded = round_matrix(weight, hessian, group_size=32, passes=2)
    assert not rounded.codes[2].any()
    assert rounded.scales.ne(0).all()
    assert smallest_scales(rounded.scales.half().numpy(), ScaleType.F16) is ScaleType.I8


def test_the_slope_follows_new_scales() -> None:
    weight, hessian = layer(256)
    rounded = compensate(weight, weight != 0, hessian, group_size=32)
    slope = slope_of(rounded, weight, hessian)
    rescale(rounded, in_bytes(rounded.scales), slope, hessian)
    assert torch.allclose(slope, slope_of(rounded, weight, hessian), atol=1e-9)


def test_the_longer_end_of_the_grid_serves_the_largest_weight() -> None:
    """-8 and 7 are not alike: a row whose largest weight is positive has a negative scale."""
    weight = torch.tensor([[8.0, -7.0, 3.0, 0.0], [-8.0, 7.0, 1.0, 2.0]])
    scale = fit_scales(weight, torch.ones(4))
    assert scale.tolist() == [-1.0, 1.0]
