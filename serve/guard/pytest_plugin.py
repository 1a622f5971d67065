"""Latency regression tests for pytest, in a few lines.

    def test_the_new_export_is_not_slower(latency_guard):
        latency_guard.assert_not_slower("build/new", than="build/old")

The fixture comes with the installed project. It passes and fails like `python -m serve check`; inconclusive fails,
too, and says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from serve.bench.workload import Workload
    from serve.guard.regression import Verdict
    from serve.runtimes.runtime import RunOptions
    from shearling.target import Target


@dataclass(frozen=True)
class LatencyGuard:
    """Checks with the settings of one test session.

    Attributes:
        verdicts: of all checks so far, in their order.
    """

    verdicts: list[Verdict] = field(default_factory=list)

    def assert_not_slower(
        self,
        candidate: str | Path | Target,
        *,
        than: str | Path | Target,
        max_ratio: float = 1.05,
        options: RunOptions | None = None,
        workload: Workload | None = None,
    ) -> Verdict:
        """Fail the test unless the candidate takes at most `max_ratio` of the reference's time, first token and
        decode alike.

        Args:
            candidate: an export or model directory; `DIR@NAME=VALUE` as on the command line.
            than: the reference, likewise.
            max_ratio: largest acceptable candidate time over reference time.
            options: how both run; by default on the CPU with one thread.
            workload: by default that of `python -m serve check`.

        Raises:
            AssertionError: slower, or inconclusive.
            ShearlingError: something cannot be measured.
        """
        from serve.guard.regression import check_regression, guard_workload, require_pass
        from serve.runtimes.runtime import RunOptions
        from shearling.errors import CheckFailed
        from shearling.target import parse_target

        verdict, _ = check_regression(
            parse_target(candidate),
            parse_target(than),
            max_ratio=max_ratio,
            options=options or RunOptions(threads=1),
            workload=workload or guard_workload(),
        )
        self.verdicts.append(verdict)
        try:
            require_pass(verdict)
        except CheckFailed as error:
            raise AssertionError(f"{candidate} against {than}: {error}") from None
        return verdict


@pytest.fixture(scope="session")
def latency_guard() -> LatencyGuard:
    """Checks that one model is not slower than another."""
    return LatencyGuard()
