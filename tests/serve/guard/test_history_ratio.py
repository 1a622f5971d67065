"""The ratio to a history, and the blocks that would probably settle it, on invented times."""

from __future__ import annotations

import numpy as np
import pytest

from serve.guard.history_ratio import Times, blocks_to_settle, history_ratio, of_the_same_prompts
from serve.guard.process_pairs import USUAL_LUCK


def times(count: int, *, centre: float = 1.0, noise: float = 0.05, seed: int = 0) -> Times:
    values = centre * np.random.default_rng(seed).lognormal(sigma=noise, size=count)
    return Times(tuple(values.tolist()), processes=2)


def test_an_interval_holds_the_true_ratio_as_often_as_it_says() -> None:
    """Of each of two looks in 97.5 % of cases; a bootstrap of 16 blocks promises a little less."""
    held = 0
    for seed in range(200):
        found = history_ratio(
            times(16, centre=1.1, seed=seed), [times(16, seed=1000 + seed), times(16, seed=2000 + seed)]
        )
        held += found.low <= 1.1 <= found.high
    assert held >= 184


@pytest.mark.parametrize(("entries", "processes"), [(1, 2), (2, 2), (5, 2), (1, 12), (2, 12)])
def test_processes_that_are_fast_or_slow_for_life_do_not_make_it_wrong(entries: int, processes: int) -> None:
    """Two for each measurement of the past, 1 % apart; at the limit, where every clear answer is an error."""
    generator, wrong = np.random.default_rng(7), 0

    def measured(processes: int) -> Times:
        luck = np.repeat(np.exp(USUAL_LUCK / np.sqrt(2) * generator.standard_normal(processes)), 8)
        values = luck * np.exp(0.01 * generator.standard_normal(luck.size))
        return Times(tuple(values.tolist()), processes)

    for _ in range(300):
        found = history_ratio(measured(processes), [measured(2) for _ in range(entries)])
        wrong += not found.low <= 1.0 <= found.high
    assert wrong <= 0.04 * 300


def test_prompts_that_one_measurement_has_not_reached_count_for_none() -> None:
    """A trace of short prompts before long ones: the past saw the short ones alone."""
    trace = [*range(16), *range(100, 132)]
    long = [float(trace[block % 48] + 1) for block in range(100)]
    now, then = of_the_same_prompts([long, long[:16]], prompts=48, blocks_each=8)
    assert (now.values, now.processes) == ((*then.values, *then.values), 13)
    assert history_ratio(now, [then]).median == 1
    # Of ten prompts all are reached, some twice.
    (own,) = of_the_same_prompts([list(map(float, range(16)))], prompts=10, blocks_each=8)
    assert own.values == tuple(map(float, range(10)))
    (own,) = of_the_same_prompts([[1.0] * 17], prompts=1, blocks_each=8)
    assert own == Times((1.0,) * 17, processes=3)


def test_days_that_differ_widen_it_and_blocks_do_not_narrow_that() -> None:
    days = [times(16, centre=centre, noise=0.01, seed=3) for centre in (0.9, 1.1)]
    few, many = (history_ratio(times(count, noise=0.01), days) for count in (16, 280))
    assert (few.low, few.high) == pytest.approx((1 / 1.1, 1 / 0.9), rel=0.02)
    assert (many.low, many.high) == pytest.approx((few.low, few.high), rel=0.01)


def test_what_more_blocks_would_settle_is_settled_by_them_mostly() -> None:
    days = [times(60, seed=day, noise=0.03) for day in range(50, 54)]
    asked, settled = 0, 0
    for seed in range(60):
        now = times(16, noise=0.12, seed=seed)
        ratio = history_ratio(now, days)
        if not ratio.low <= 1.05 < ratio.high:
            continue
        needed = blocks_to_settle(now, days, max_ratio=1.05, most=600)
        if needed is None:
            continue
        assert needed > 16
        asked += 1
        again = history_ratio(times(needed, noise=0.12, seed=500 + seed), days)
        settled += not again.low <= 1.05 < again.high
    assert asked >= 10
    assert settled >= 0.7 * asked


def test_what_no_number_of_blocks_settles_is_said() -> None:
    apart = [times(16, centre=centre) for centre in (0.5, 2.0)]
    assert blocks_to_settle(times(16), apart, max_ratio=1.05, most=100_000) is None
    at_the_limit = [times(16, noise=0.001)]
    assert blocks_to_settle(times(16, centre=1.05, noise=0.1), at_the_limit, max_ratio=1.05, most=280) is None
