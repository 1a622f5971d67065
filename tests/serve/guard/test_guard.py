"""The guard on real models, as a user of the fixture writes it; the rates of its errors are what `make bench-guard`
measures."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve.guard.pytest_plugin import LatencyGuard
from serve.guard.regression import guard_workload
from serve.runtimes.runtime import RunOptions
from tests.support.latency_models import write_layers

pytestmark = [pytest.mark.alone, pytest.mark.slow]

OPTIONS = RunOptions(precision="fp32", threads=1)
PATIENT = guard_workload(budget_s=240)
"""The rest of the tests may keep the machine busy; a clear verdict ends it long before."""


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_layers(tmp_path_factory.mktemp("guard") / "short", 2)


def test_a_model_is_not_slower_than_itself(latency_guard: LatencyGuard, short: Path) -> None:
    # A model of microseconds: the threshold is wide, the machine of the tests is not quiet.
    verdict = latency_guard.assert_not_slower(short, than=short, max_ratio=1.3, options=OPTIONS, workload=PATIENT)
    assert len(verdict.sessions) >= 3


def test_a_deeper_model_is_caught(latency_guard: LatencyGuard, short: Path, tmp_path: Path) -> None:
    deep = write_layers(tmp_path / "deep", 6)
    with pytest.raises(AssertionError, match="latency regression against"):
        latency_guard.assert_not_slower(deep, than=short, max_ratio=1.3, options=OPTIONS, workload=PATIENT)


def test_no_time_is_no_verdict(latency_guard: LatencyGuard, short: Path) -> None:
    with pytest.raises(AssertionError, match="inconclusive"):
        latency_guard.assert_not_slower(short, than=short, options=OPTIONS, workload=guard_workload(budget_s=0.5))
