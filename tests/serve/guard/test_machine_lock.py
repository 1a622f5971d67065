"""One check at a time, whoever asks: other processes wait, and a dead one holds nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from serve.guard.machine_lock import VARIABLE, measuring_alone
from shearling.errors import EnvironmentFault

HOLD = """
import sys, time
from serve.guard.machine_lock import measuring_alone
with measuring_alone():
    print(time.monotonic(), flush=True)
    time.sleep(float(sys.argv[1]))
    print(time.monotonic(), flush=True)
"""


def hold(seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD, str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(autouse=True)
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "lock"))
    return tmp_path / "lock"


def test_two_processes_take_turns_and_the_second_says_that_it_waits() -> None:
    spans, said = [], []
    for process in [hold(0.5) for _ in range(3)]:
        out, error = process.communicate(timeout=60)
        spans.append(tuple(map(float, out.split())))
        said.append("another check measures on this machine" in error)
    for (_, ended), (begun, _) in zip(sorted(spans), sorted(spans)[1:], strict=False):
        assert begun >= ended
    assert any(said)


def test_a_killed_process_holds_nothing() -> None:
    process = hold(600)
    process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    started_s = time.monotonic()
    with measuring_alone():
        pass
    assert time.monotonic() - started_s < 5


def test_a_lock_that_cannot_be_is_refused(lock: Path) -> None:
    lock.mkdir()
    with pytest.raises(EnvironmentFault, match=r"no regular file.*SHEARLING_LATENCY_LOCK"), measuring_alone():
        pass
    lock.rmdir()
    lock.symlink_to(lock.with_name("elsewhere"))
    with pytest.raises(EnvironmentFault, match="cannot be locked"), measuring_alone():
        pass


def test_without_any_directory_for_it_the_variables_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.delenv(VARIABLE)
    monkeypatch.setattr("tempfile.gettempdir", nowhere)
    with pytest.raises(EnvironmentFault, match="TMPDIR=DIRECTORY, or SHEARLING_LATENCY_LOCK=FILE"), measuring_alone():
        pass


def test_others_may_read_it_whatever_the_umask_is(lock: Path) -> None:
    before = os.umask(0o077)
    try:
        with measuring_alone():
            assert lock.stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(before)
