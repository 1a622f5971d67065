"""Refits and swaps of single matrices against exact solutions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shearling.calibration.gram import layer_error
from train.sparsity.pattern import Pattern, SemiStructured, Unstructured
from train.sparsity.reconstruction import mask_swaps
from train.sparsity.reconstruction.conjugate_gradients import refit
from train.sparsity.reconstruction.mask_swaps import swap_weights


def case(pattern: Pattern, *, seed: int = 0, out: int = 10, columns: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, mask by magnitude, Hessian of inputs whose channels move together."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(300, columns // 2, generator=generator) @ torch.randn(
        columns // 2, columns, generator=generator
    )
    inputs += 0.3 * torch.randn(300, columns, generator=generator)
    weight = torch.randn(out, columns, generator=generator)
    return weight, pattern.keep(weight.abs()), inputs.T @ inputs


def least_squares(weight: Tensor, mask: Tensor, hessian: Tensor) -> Tensor:
    exact = torch.zeros_like(weight, dtype=torch.float64)
    for row, kept in enumerate(mask):
        inner = hessian.double()[kept][:, kept]
        exact[row, kept] = torch.linalg.solve(inner, hessian.double()[kept] @ weight[row].double())
    return exact


def test_refit_reaches_the_least_squares_weights() -> None:
    weight, mask, hessian = case(Unstructured(0.5))
    fitted = refit(weight, weight, mask, hessian, steps=60)
    torch.testing.assert_close(fitted.double(), least_squares(weight, mask, hessian), rtol=1e-3, atol=1e-3)
    assert not fitted[~mask].any()


def test_every_step_lowers_the_error_and_nothing_is_modified() -> None:
    weight, mask, hessian = case(Unstructured(0.6), seed=1)
    copies = weight.clone(), mask.clone(), hessian.clone()
    errors = [layer_error(weight, refit(weight, weight, mask, hessian, steps=steps), hessian) for steps in range(8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.6 * errors[0]
    assert all(now.equal(before) for now, before in zip((weight, mask, hessian), copies, strict=True))


def test_independent_inputs_take_one_step_and_others_one_for_each_kept_weight() -> None:
    weight, start, mask = torch.randn(6, 8), torch.randn(6, 8), Unstructured(0.5).keep(torch.rand(6, 8))
    sizes = torch.tensor([1.0, 30.0, 0.1, 5.0, 200.0, 1.0, 0.5, 8.0])
    torch.testing.assert_close(refit(weight, start, mask, sizes.diag(), steps=1), weight * mask, rtol=1e-4, atol=1e-4)
    inputs = torch.randn(50, 8) * sizes
    hessian = inputs.T @ inputs
    fitted = refit(weight, start, mask, hessian, steps=4)
    torch.testing.assert_close(fitted.double(), least_squares(weight, mask, hessian), rtol=1e-3, atol=1e-3)


def test_a_solved_row_stays_finite() -> None:
    """A row that keeps everything has no error, and one without weights nothing to move."""
    weight, _, hessian = case(Unstructured(0.5))
    mask = torch.ones_like(weight, dtype=torch.bool)
    mask[1] = False
    fitted = refit(weight, weight, mask, hessian, steps=10)
    assert fitted.isfinite().all()
    assert fitted[0].equal(weight[0])
    assert not fitted[1].any()


@pytest.mark.parametrize("pattern", [Unstructured(0.5), SemiStructured(2, 4), SemiStructured(4, 8)], ids=str)
def test_swaps_keep_the_pattern_and_lower_the_error_of_every_row(pattern: Pattern) -> None:
    weight, mask, hessian = case(pattern, seed=2)
    start = weight * mask
    swapped, values = swap_weights(weight, start, mask, hessian, block=pattern.block, swaps=20)
    assert pattern.keep(swapped.float()).equal(swapped)
    assert not values[~swapped].any()
    assert not swapped.equal(mask)

    def row_errors(replacement: Tensor) -> Tensor:
        difference = (weight - replacement).double()
        return ((difference @ hessian.double()) * difference).sum(1)

    assert (row_errors(values) <= row_errors(start) * (1 + 1e-5)).all()
    assert row_errors(values).sum() < 0.9 * row_errors(start).sum()


@pytest.mark.parametrize("pattern", [Unstructured(0.5), SemiStructured(2, 4)], ids=str)
def test_rows_are_looked_at_in_parts_as_if_together(pattern: Pattern, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, mask, hessian = case(pattern, seed=3)
    together = swap_weights(weight, weight * mask, mask, hessian, block=pattern.block, swaps=5)
    monkeypatch.setattr(mask_swaps, "ENTRIES_AT_ONCE", 3 * 32)
    apart = swap_weights(weight, weight * mask, mask, hessian, block=pattern.block, swaps=5)
    for one, other in zip(together, apart, strict=True):
        assert one.equal(other)


def test_the_first_swap_is_the_best_of_all_pairs() -> None:
    weight, mask, hessian = case(Unstructured(0.5), out=3, columns=10)
    start = weight * mask
    swapped, values = swap_weights(weight, start, mask, hessian, block=None, swaps=1)
    for row in range(3):
        errors = {}
        for leaving in mask[row].nonzero().flatten().tolist():
            for entering in (~mask[row]).nonzero().flatten().tolist():
                candidate = start[row].double().clone()
                candidate[leaving] = 0
                slope = hessian.double() @ (weight[row].double() - candidate)
                candidate[entering] = slope[entering] / hessian[entering, entering]
                difference = weight[row].double() - candidate
                errors[leaving, entering] = float(difference @ hessian.double() @ difference)
        leaving, entering = min(errors, key=lambda pair: errors[pair])
        expected = mask[row].clone()
        expected[leaving], expected[entering] = False, True
        difference = (weight[row] - start[row]).double()
        before = float(difference @ hessian.double() @ difference)
        assert errors[leaving, entering] < before
        assert swapped[row].equal(expected)
        difference = (weight[row] - values[row]).double()
        assert float(difference @ hessian.double() @ difference) == pytest.approx(errors[leaving, entering], rel=1e-4)


def test_a_row_that_no_swap_helps_is_left_alone() -> None:
    """Independent inputs of equal size: the largest weights are the best to keep."""
    weight, mask, _ = case(Unstructured(0.5))
    swapped, values = swap_weights(weight, weight * mask, mask, torch.eye(weight.shape[1]), block=None, swaps=5)
    assert swapped.equal(mask)
    assert values.equal(weight * mask)


def test_a_swap_that_gains_nothing_is_not_done() -> None:
    weight = torch.ones(3, 8)
    mask = Unstructured(0.5).keep(weight)
    swapped, values = swap_weights(weight, weight * mask, mask, torch.eye(8), block=None, swaps=3)
    assert swapped.equal(mask)
    assert values.equal(weight * mask)


def test_swaps_follow_each_other_and_modify_nothing() -> None:
    """Three at once are one after another, each beginning where the last one ended."""
    weight, mask, hessian = case(Unstructured(0.5), seed=3)
    copies = weight.clone(), mask.clone(), hessian.clone()
    at_once = swap_weights(weight, weight * mask, mask, hessian, block=None, swaps=3)
    swapped, values = mask, weight * mask
    for _ in range(3):
        swapped, values = swap_weights(weight, values, swapped, hessian, block=None, swaps=1)
    assert at_once[0].equal(swapped)
    torch.testing.assert_close(at_once[1], values, rtol=1e-3, atol=1e-3)
    assert all(now.equal(before) for now, before in zip((weight, mask, hessian), copies, strict=True))


def test_candidates_are_enough_for_most_of_what_the_best_swap_gains() -> None:
    """Of 16 kept and 16 pruned weights 8 each are looked at in pairs; a search over all pairs is the measure."""
    weight, mask, hessian = (tensor.double() for tensor in case(Unstructured(0.5), seed=4, out=6))
    mask, start = mask.bool(), weight * mask
    swapped, values = swap_weights(weight.float(), start.float(), mask, hessian.float(), block=None, swaps=1)
    assert not swapped.equal(mask)

    def error(row: int, replacement: Tensor) -> float:
        difference = weight[row] - replacement
        return float(difference @ hessian @ difference)

    found = best = 0.0
    for row in range(len(weight)):
        found += error(row, start[row]) - error(row, values[row].double())
        gains = [0.0]
        for leaving in mask[row].nonzero().flatten():
            without = start[row].clone()
            without[leaving] = 0
            slope = hessian @ (weight[row] - without)
            gain = (slope.square() / hessian.diagonal()).where(~mask[row], -torch.inf).max()
            gains.append(error(row, start[row]) - error(row, without) + float(gain))
        best += max(gains)
    assert 0.95 * best < found <= best * (1 + 1e-4)
