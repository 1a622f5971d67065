"""The comparison of wheel and toolchain: its verdicts, and what a failure leaves. Both of its sides run where the wheel
is: tests/packages.
"""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from benchmarks import runtime_wheel
from benchmarks.runtime_wheel import Times, judge
from serve.bench.statistics import Estimate
from shearling.errors import ShearlingError


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


@pytest.mark.parametrize("good", [0, 3])
def test_a_process_that_fails_costs_no_round_before_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], good: int
) -> None:
    turns = count()

    def time_wheel(*_: object) -> tuple[Times, dict[str, Any]]:
        if next(turns) == good:
            raise ShearlingError("exit code 137")
        return Times(0.1, 0.01), {"packed": True, "kernels": "avx2"}

    monkeypatch.setattr(runtime_wheel, "install", lambda *_: Path("bin"))
    monkeypatch.setattr(runtime_wheel, "time_wheel", time_wheel)
    monkeypatch.setattr(runtime_wheel, "time_toolchain", lambda *_: (Times(0.1, 0.01), {}))
    assert runtime_wheel.main(["export", "--wheel", "some.whl", "--rounds", "5"]) == 1
    printed = capsys.readouterr().out
    if good:
        told = json.loads(printed)
        assert (len(told["rounds"]), told["verdict"]) == (3, "equal")
        assert "137" in told["failure"]
    else:
        assert not printed
