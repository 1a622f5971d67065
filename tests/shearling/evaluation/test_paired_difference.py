"""Two models on the same rows: the test, the interval and the correction against brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import binomtest

from shearling.evaluation.paired_difference import holm, paired_difference, paired_interval, permutation_test


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (3, 0), (0, 3), (5, 2), (6, 6), (37, 16), (800, 700), (2, 1500)])
def test_of_answers_right_or_wrong_the_test_is_mcnemars(wins: int, losses: int) -> None:
    expected = binomtest(wins, wins + losses, 0.5, alternative="greater").pvalue if wins + losses else 1.0
    assert permutation_test([1.0] * wins + [0.0, 0.0] + [-1.0] * losses) == pytest.approx(expected, rel=1e-9)


def test_of_graded_answers_it_counts_every_way_that_the_models_may_be_swapped() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        differences = random.uniform(-0.8, 1, 12) * random.choice([0, 1, 1], 12)
        sums = np.array(list(itertools.product((-1, 1), repeat=12))) @ np.abs(differences)
        expected = float(np.mean(sums >= differences.sum() - 1e-12))
        assert permutation_test(differences.tolist()) == pytest.approx(expected, abs=0.02)


def test_no_number_of_small_wins_makes_up_for_a_lower_mean() -> None:
    more_often, more_right = [0.02] * 30 + [-0.60] * 8, [-0.02] * 30 + [0.60] * 8
    assert permutation_test(more_often) > 0.99
    assert permutation_test(more_right) < 0.01


def test_holm_is_the_closure_of_bonferroni() -> None:
    p_values = [0.01, 0.04, 0.011, 0.5, 0.012, 0.9]
    places = range(len(p_values))

    def bonferroni(subset: tuple[int, ...]) -> float:
        return min(1.0, len(subset) * min(p_values[place] for place in subset))

    subsets = [subset for size in range(1, 7) for subset in itertools.combinations(places, size)]
    expected = [max(bonferroni(subset) for subset in subsets if place in subset) for place in places]
    assert holm(p_values) == pytest.approx(expected)
    assert holm([]) == []


@pytest.mark.parametrize("n", [20, 60])
@pytest.mark.parametrize(("won", "lost"), [(0.1, 0.1), (0.15, 0.05), (0.02, 0.02), (0.3, 0.1), (0.05, 0.0)])
def test_the_interval_covers_the_true_difference(n: int, won: float, lost: float) -> None:
    """Summed over every outcome that n rows can have."""
    covered = 0.0
    for wins in range(n + 1):
        for losses in range(n + 1 - wins):
            ties = n - wins - losses
            ways = math.comb(n, wins) * math.comb(n - wins, losses)
            chance = ways * won**wins * lost**losses * (1 - won - lost) ** ties
            low, high = paired_interval([1.0] * wins + [-1.0] * losses + [0.0] * ties)
            covered += chance * (low <= won - lost <= high)
    assert covered >= 0.93


def test_graded_answers_are_compared_row_by_row() -> None:
    found = paired_difference([1.0, 0.5, 0.25, 1.0], [0.0, 0.25, 0.5, 1.0, 0.0])
    assert (found.n, found.mean) == (4, 0.25)
    # Of the eight ways to swap 1, 0.25 and 0.25, those that leave 1 where it is and not both others the other way.
    assert found.p_value == 3 / 8
    low, high = found.interval
    assert low < 0.25 < high


def test_nobody_waits_for_a_test_that_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It grows with the square of graded rows, and a rule may read the interval alone."""
    monkeypatch.setattr("shearling.evaluation.paired_difference.permutation_test", None)
    assert paired_difference([0.5], [0.25]).mean == 0.25


def test_no_common_rows_tell_nothing() -> None:
    found = paired_difference([], [1.0])
    assert (found.n, found.mean, found.p_value) == (0, 0.0, 1.0)
    assert found.interval[0] < -0.9
    assert found.interval[1] > 0.9
