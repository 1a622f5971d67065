"""A process that dies with the settings of a baseline, in a real runtime: others are tried, and the history knows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from serve.guard.baseline import check_baseline
from serve.guard.regression import Verdict, guard_workload
from serve.runtimes.runtime import RunOptions
from shearling.errors import RuntimeCrashed
from shearling.target import parse_target
from tests.support.environments import environment_seeing_ours

DIES_WITH_ONE_THREAD = """
import os, signal, sys
# What measures is told where its modules are; what asks for those of the environment is not.
if sys.orig_argv[-1].endswith("serve") and os.environ.get("OMP_NUM_THREADS") == "1":
    os.kill(os.getpid(), signal.SIGFPE)
"""


@pytest.mark.slow
def test_a_baseline_is_measured_with_other_settings_where_the_first_ones_die(export: Path, tmp_path: Path) -> None:
    place = environment_seeing_ours(tmp_path / "new", at_start=DIES_WITH_ONE_THREAD)
    target, path = parse_target(f"{export}@format=onnx,environment={place}"), tmp_path / "baseline.json"

    def check(*, record: bool = False) -> Verdict:
        return check_baseline(
            target,
            path,
            max_ratio=20.0,
            options=RunOptions(threads=1, huge_pages=False),
            workload=guard_workload(8, 4),
            record=record,
        )[0]

    first = check(record=True)
    assert first.outcome == "pass"
    assert "measured with --threads 2, because without it" in first.changes[0]
    history = json.loads(path.read_text())
    assert history["options"]["threads"] == 2
    # The same flags meet the same crash, and the history of what came of it.
    assert check().outcome == "pass"
    # A history of the settings that die now: others would be compared with it, so nothing is.
    history["options"]["threads"] = 1
    path.write_text(json.dumps(history))
    with pytest.raises(RuntimeCrashed, match="SIGFPE"):
        check()
