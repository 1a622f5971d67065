"""The benchmark of executors, small."""

from __future__ import annotations

import json

import pytest

from benchmarks.executors import main

pytest.importorskip("ray")


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning:ray")
def test_workers_are_busy_nearly_all_the_time(capsys: pytest.CaptureFixture) -> None:
    assert main(["--workers", "3", "--jobs", "24", "--job-s", "0.5", "--long-jobs", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    for executor in ("processes", "ray"):
        assert found[executor]["efficiency"] >= 0.9
        assert found[executor]["overhead_of_2_s"] < 0.05
