"""The comparison of wheel and toolchain: its verdicts. Both of its sides run where the wheel is: tests/packages."""

from __future__ import annotations

import pytest

from benchmarks.runtime_wheel import judge
from serve.bench.statistics import Estimate


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.99, 1.01, "equal"),
        (0.981, 1.019, "equal"),
        (0.99, 1.03, "inconclusive"),
        (0.9, 1.0, "inconclusive"),
        (1.03, 1.2, "slower"),
        (0.9, 0.97, "faster"),
    ],
)
def test_a_verdict_is_of_the_whole_interval(low, high, verdict):
    assert judge(Estimate(median=(low + high) / 2, low=low, high=high, samples=12)) == verdict
