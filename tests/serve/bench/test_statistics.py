"""Intervals against numpy and against distributions whose median is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from serve.bench.statistics import MANY, bootstrap_median, independent_ratio, paired_ratio, percentile


def test_median_is_numpys_and_the_interval_holds_it() -> None:
    values = [3.0, 1.0, 2.0, 10.0]
    estimate = bootstrap_median(values)
    assert estimate.median == np.median(values)
    assert min(values) <= estimate.low <= estimate.median <= estimate.high <= max(values)
    assert estimate == bootstrap_median(values)


def test_interval_is_the_exact_bootstrap_distribution() -> None:
    # The median of 3 draws from {1, 2, 3}: P(1) = P(3) = 7/27, so 25 % and 75 % quantiles are 1 and 3 and any 40 %
    # interval is 2.
    assert bootstrap_median([1.0, 2.0, 3.0], confidence=0.5).low == 1.0
    assert bootstrap_median([1.0, 2.0, 3.0], confidence=0.4).low == 2.0
    assert bootstrap_median([1.0, 2.0, 3.0], confidence=0.5).high == 3.0


@pytest.mark.parametrize("count", [9, 25])
def test_coverage_on_a_skewed_distribution(count: int) -> None:
    generator = np.random.default_rng(7)
    truth = math.log(2)  # the median of Exp(1)
    estimates = [
        bootstrap_median(generator.exponential(size=count).tolist(), seed=trial, resamples=500) for trial in range(400)
    ]
    covered = np.mean([estimate.low <= truth <= estimate.high for estimate in estimates])
    assert 0.90 <= covered <= 0.99


def in_processes(generator: np.random.Generator, processes: int, blocks: int) -> tuple[list[float], list[int]]:
    """Times whose true median is 1: processes differ by 2 %, and their blocks by 1 %; and which process each is of."""
    logs = 0.02 * generator.normal(size=(processes, 1)) + 0.01 * generator.normal(size=(processes, blocks))
    return np.exp(logs).ravel().tolist(), np.repeat(np.arange(processes), blocks).tolist()


def test_coverage_where_processes_differ_for_their_whole_life() -> None:
    generator = np.random.default_rng(7)
    covered = {"median": 0, "pairs": 0, "runs": 0}
    trials = 100
    for trial in range(trials):
        values, groups = in_processes(generator, 8, 6)
        others, _ = in_processes(generator, 8, 6)
        estimates = {
            "median": bootstrap_median(values, groups=groups, seed=trial),
            "pairs": paired_ratio(values, others, groups=groups, seed=trial),
            "runs": independent_ratio(values, others, groups=(groups, groups), seed=trial),
        }
        for name, estimate in estimates.items():
            covered[name] += estimate.low <= 1 <= estimate.high
    assert min(covered.values()) / trials >= 0.86, covered
    assert max(covered.values()) / trials <= 0.995, covered


def test_values_of_one_process_are_drawn_as_they_are() -> None:
    values = np.random.default_rng(1).lognormal(size=9).tolist()
    assert bootstrap_median(values, groups=[3] * 9) == bootstrap_median(values)


def test_processes_may_have_run_for_longer_than_others() -> None:
    # Of 1 and of 2, one process each: the drawn median is 1, 2, or that of both, which holds two of 1 and one of 2.
    estimate = bootstrap_median([1.0, 1.0, 2.0], groups=[0, 0, 1], confidence=0.4)
    assert (estimate.low, estimate.median, estimate.high) == (1.0, 1.0, 1.0)
    estimate = bootstrap_median([1.0, 1.0, 2.0], groups=[0, 0, 1])
    assert (estimate.low, estimate.high) == (1.0, 2.0)


def test_many_values_of_few_processes_take_no_more_memory_than_there_is() -> None:
    values = np.concatenate([np.full(300_000, 1.0), np.full(300_000, 1.1), np.full(300_000, 1.2)])
    estimate = bootstrap_median(values.tolist(), groups=np.repeat([0, 1, 2], 300_000).tolist())
    assert (estimate.low, estimate.median, estimate.high, estimate.samples) == (1.0, 1.1, 1.2, 900_000)


@pytest.mark.parametrize("count", [MANY + 1, MANY + 2])
def test_many_values_have_the_interval_of_drawing_each(count: int) -> None:
    data = np.random.default_rng(5).exponential(size=count)
    estimate = bootstrap_median(data.tolist(), resamples=20_000)
    drawn = [np.median(data[np.random.default_rng(trial).integers(0, count, size=count)]) for trial in range(20_000)]
    assert (estimate.median, estimate.samples) == (np.median(data), count)
    # In shares of the drawn medians: values themselves have gaps between them.
    below = [np.mean(np.asarray(drawn) <= bound) for bound in (estimate.low, estimate.high)]
    assert below == pytest.approx([0.025, 0.975], abs=0.01)
    ratio = independent_ratio((2 * data).tolist(), data.tolist())
    assert ratio.low < ratio.median == 2 < ratio.high


def test_a_million_values_take_no_more_memory_than_there_is() -> None:
    assert bootstrap_median([1.0, 2.0, 3.0] * 333_333).low == 2.0


def test_one_outlier_moves_the_median_of_many_nowhere_far() -> None:
    calm = np.linspace(1.0, 1.1, 21).tolist()
    assert bootstrap_median([*calm[:-1], 50.0]).high < 1.1


def test_paired_ratio_is_free_of_drift() -> None:
    drift = 1 + 5 * np.random.default_rng(0).random(20)
    estimate = paired_ratio((1.2 * drift).tolist(), drift.tolist())
    assert estimate.low == pytest.approx(1.2)
    assert estimate.high == pytest.approx(1.2)
    unpaired = independent_ratio((1.2 * drift).tolist(), drift.tolist())
    assert unpaired.low < 1.0 < 1.4 < unpaired.high


def test_independent_ratio_of_equal_runs_holds_one() -> None:
    generator = np.random.default_rng(3)
    estimate = independent_ratio(generator.lognormal(size=30).tolist(), generator.lognormal(size=40).tolist())
    assert estimate.low < 1 < estimate.high
    assert estimate.samples == 30


def test_percentile_is_numpys() -> None:
    values = np.random.default_rng(0).random(100).tolist()
    assert percentile(values, 0.9) == np.percentile(values, 90)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_no_median_of_nothing_or_of_infinity(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        bootstrap_median(values)


def test_ratios_need_positive_pairs() -> None:
    with pytest.raises(ValueError, match="pairs"):
        paired_ratio([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="positive"):
        paired_ratio([1.0], [0.0])
    with pytest.raises(ValueError, match="positive"):
        independent_ratio([], [1.0])
