"""Memory and waits of a real process, as the kernel tells them."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from serve.visitor.counters import SOFTWARE, TASK_CLOCK, instructions, open_counter, read_counter
from serve.visitor.huge_pages import HUGE_BYTES, collapse_memory
from serve.visitor.interruptions import preemptions, stolen_s
from serve.visitor.own_process import (
    huge_memory_bytes,
    own_threads,
    peak_memory_bytes,
    pin,
    private_memory_bytes,
    usable_cpus,
)
from serve.visitor.protocol import timed
from serve.visitor.waiting import thread_times, waited_between, waited_s

BUSY = "import time\nend = time.monotonic() + 20\nwhile time.monotonic() < end: pass"


@pytest.fixture(autouse=True)
def _affinity() -> Iterator[None]:
    """Pinning concerns all threads of this process: undone for all of them."""
    before = os.sched_getaffinity(0)
    yield
    for thread in own_threads():
        with suppress(ProcessLookupError):
            os.sched_setaffinity(thread, before)


def spin(seconds: float) -> tuple[float, float]:
    """Wall time and wait of so much CPU time."""
    before_s, started_s, cpu_s = waited_s(), time.perf_counter(), time.thread_time()
    while time.thread_time() - cpu_s < seconds:
        pass
    after_s = waited_s()
    assert before_s is not None
    assert after_s is not None
    return time.perf_counter() - started_s, after_s - before_s


@contextmanager
def rivals() -> Iterator[None]:
    """Two processes that compute on the same CPUs."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(2)]
    try:
        time.sleep(0.5)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.skipif(waited_s() is None, reason="this system counts no waits")
def test_what_a_competitor_takes_is_counted_and_sleep_is_not() -> None:
    pin(1)
    with rivals():
        wall_s, wait_s = spin(0.2)
    assert wait_s > 0.1
    assert wall_s - wait_s == pytest.approx(0.2, rel=0.15)
    start_s = waited_s()
    time.sleep(0.3)
    end_s = waited_s()
    assert start_s is not None
    assert end_s is not None
    assert end_s - start_s < 0.2


@pytest.mark.skipif(thread_times() is None, reason="this system counts no waits")
def test_waits_of_the_thread_that_computes_are_counted_whoever_called_it() -> None:
    pin(1)
    with rivals(), ThreadPoolExecutor(2) as pool:
        # One thread that sleeps and wakes beside it does not compute, and its waits do not count.
        restless = pool.submit(lambda: [time.sleep(0.001) for _ in range(100)])
        before, started_s = thread_times(), time.perf_counter()
        wall_s, wait_s = pool.submit(spin, 0.2).result()
        counted = waited_between(before, thread_times())
        whole_s = time.perf_counter() - started_s
        restless.result()
    assert counted is not None
    assert wait_s > 0.1
    assert counted == pytest.approx(wait_s, abs=0.1 * wall_s)
    assert counted < whole_s


@pytest.mark.skipif(thread_times() is None, reason="this system counts no waits")
@pytest.mark.parametrize("rivalled", [False, True])
def test_one_thread_that_waits_for_another_of_its_process_is_not_excused(rivalled: bool) -> None:
    """Pinned to one CPU, threads that compute at once wait for each other: that is the model's own time."""
    pin(1)

    def compute() -> None:
        # Without the interpreter's lock.
        hashlib.pbkdf2_hmac("sha256", b"x", b"y", 600_000)

    def generate() -> dict[str, float]:
        began_s = time.process_time()
        for work in [pool.submit(compute) for _ in range(2)]:
            work.result()
        return {"own_s": time.process_time() - began_s}

    # Of processes, not of threads of this one.
    with rivals() if rivalled else nullcontext(), ThreadPoolExecutor(2) as pool:
        told = timed(generate)
    net_s = told["wall_s"] - told["waited_s"]
    assert net_s >= 0.95 * told["generation"]["own_s"]
    if rivalled:
        assert net_s < 0.8 * told["wall_s"]


def test_only_threads_that_computed_have_waited() -> None:
    before = {1: (0, 0), 2: (1000, 1000)}
    after = {1: (10**9, 3 * 10**9), 2: (2000, 5 * 10**9), 3: (5 * 10**8, 10**9)}
    assert waited_between(before, after) == pytest.approx(4.0)
    assert waited_between(None, after) is None


def test_pinning_keeps_so_many_cpus_for_all_threads() -> None:
    before = set(usable_cpus())
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()
        pin(None)
        assert set(usable_cpus()) == before
        pin(1)
        assert usable_cpus() == (max(before),)
        assert pool.submit(usable_cpus).result() == (max(before),)


@pytest.mark.skipif(stolen_s() is None, reason="no /proc/stat here")
def test_what_a_hypervisor_takes_is_read_from_the_cpus_in_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    last = max(usable_cpus())
    stat.write_text(f"cpu  1 2 3 4 5 6 7 999 0 0\ncpu{last} 1 2 3 4 5 6 7 250 0 0\ncpu{last + 1} 0 0 0 0 0 0 0 9 0 0\n")
    monkeypatch.setattr("serve.visitor.interruptions.STAT", stat)
    pin(1)
    assert stolen_s() == pytest.approx(250 / os.sysconf("SC_CLK_TCK"))
    stat.write_text("cpu  1 2 3\n")
    assert stolen_s() is None


def test_being_put_off_a_cpu_is_counted() -> None:
    pin(1)
    before = preemptions()
    with rivals():
        spin(0.2)
    after = preemptions()
    assert before is not None
    assert after is not None
    assert after - before > 5


def test_counters_count_or_are_absent() -> None:
    # The task clock is counted by software, so everywhere where the system call is allowed.
    clock = open_counter(SOFTWARE, TASK_CLOCK)
    if clock is None:
        pytest.skip("this system lets nobody count")
    before = read_counter(clock)
    spin(0.05)
    assert 0.04e9 < read_counter(clock) - before < 1e9
    first, second = instructions(), instructions()
    assert (first is None) == (second is None)
    assert first is None or second is None or second > first
    assert open_counter(99, 99) is None


def test_what_the_system_refuses_is_told_from_what_could_not_lie_there(monkeypatch: pytest.MonkeyPatch) -> None:
    failures = itertools.cycle([errno.ENOMEM, errno.EINVAL, errno.EBUSY, None])

    def madvise(*_: object) -> int:
        failure = next(failures)
        ctypes.set_errno(failure or 0)
        return 0 if failure is None else -1

    monkeypatch.setattr("serve.visitor.huge_pages.ctypes.CDLL", lambda *_, **__: SimpleNamespace(madvise=madvise))
    monkeypatch.setattr("serve.visitor.huge_pages._ranges", lambda: range(8))
    assert collapse_memory() == (2 * HUGE_BYTES, 4 * HUGE_BYTES)
    # Before Linux 6.1 the advice itself is unknown.
    failures = itertools.cycle([errno.EINVAL])
    assert collapse_memory() == (0, 8 * HUGE_BYTES)


def test_memory_moves_into_huge_pages_and_keeps_its_content() -> None:
    data = np.arange(8 * HUGE_BYTES // 8)
    moved, _ = collapse_memory()
    if moved == 0:
        pytest.skip("this system collapses nothing")
    assert huge_memory_bytes() > 4 * HUGE_BYTES
    assert (data == np.arange(data.size)).all()
    assert peak_memory_bytes() >= private_memory_bytes() >= data.nbytes
