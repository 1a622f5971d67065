"""The intervals of many looks: against enumeration, and against simulation where noise is heavy-tailed and drifts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from serve.guard.sequential import (
    EXACT,
    MINIMUM,
    _critical_rank,
    _exact_rank,
    look_confidence,
    looks,
    planned_looks,
    signed_rank_ratio,
)


@pytest.mark.parametrize("count", [5, 9, 12])
@pytest.mark.parametrize("tail", [0.025, 0.003])
def test_critical_rank_by_enumeration(count: int, tail: float) -> None:
    sums = np.array(
        [sum(chosen) for size in range(count + 1) for chosen in itertools.combinations(range(1, count + 1), size)]
    )
    expected = max((w for w in range(sums.max() + 1) if (sums <= w).mean() <= tail), default=-1)
    assert _critical_rank(count, tail) == expected


@pytest.mark.parametrize("tail", [0.025, 0.003, 0.0005])
def test_the_rank_of_many_values_is_never_above_the_exact_one(tail: float) -> None:
    count = EXACT + 50
    assert 0.997 * _exact_rank(count, tail) <= _critical_rank(count, tail) <= _exact_rank(count, tail)


def test_looks_are_planned_and_the_last_may_come_early() -> None:
    planned = planned_looks()
    assert planned[:3] == (16, 24, 36)
    assert list(looks(30, ended=False)) == [16, 24]
    assert list(looks(30, ended=True)) == [16, 24, 30]
    assert list(looks(24, ended=True)) == [16, 24]
    assert list(looks(MINIMUM - 1, ended=True)) == []
    assert len(list(looks(planned[-1] + 5, ended=True))) == len(planned)


def test_fewer_pairs_than_the_confidence_needs_bound_nothing() -> None:
    few = signed_rank_ratio([1.0] * (MINIMUM - 1), [1.0] * (MINIMUM - 1), confidence=look_confidence())
    assert (few.low, few.high > 1e300) == (0.0, True)
    enough = signed_rank_ratio([1.1] * MINIMUM, [1.0] * MINIMUM, confidence=look_confidence())
    assert enough.low == pytest.approx(1.1)


@pytest.mark.parametrize("noise", ["normal", "heavy"])
def test_all_looks_together_keep_their_promise(noise: str) -> None:
    # Student's t with 2 degrees of freedom has no variance; a drift of 2x is common to both sides.
    generator = np.random.default_rng(5)
    missed, trials, blocks = 0, 300, 81
    for _ in range(trials):
        drift = np.exp(np.linspace(0, 0.7, blocks))
        scatter = generator.normal(size=(2, blocks)) if noise == "normal" else generator.standard_t(2, size=(2, blocks))
        sides = drift * np.exp(0.03 * scatter)
        for count in looks(blocks, ended=True):
            ratio = signed_rank_ratio(
                sides[0, :count].tolist(), sides[1, :count].tolist(), confidence=look_confidence()
            )
            if not ratio.low <= 1.0 <= ratio.high:
                missed += 1
                break
    assert missed / trials <= 0.05 + 0.03


def test_a_quarter_of_outliers_moves_it_little() -> None:
    ratios = np.linspace(0.99, 1.01, 40)
    ratios[::4] = 5.0
    assert signed_rank_ratio(ratios.tolist(), [1.0] * 40).median < 1.05


def test_ratios_need_positive_pairs() -> None:
    with pytest.raises(ValueError, match="pairs"):
        signed_rank_ratio([1.0], [])
    with pytest.raises(ValueError, match="positive"):
        signed_rank_ratio([0.0], [1.0])
