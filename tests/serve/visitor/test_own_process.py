"""Memory and waits of a real process, as the kernel tells them."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from serve.visitor.huge_pages import HUGE_BYTES, collapse_memory
from serve.visitor.own_process import huge_memory_bytes, peak_memory_bytes, pin, private_memory_bytes, usable_cpus
from serve.visitor.waiting import waited_s

BUSY = "import time\nend = time.monotonic() + 20\nwhile time.monotonic() < end: pass"


def spin(seconds: float) -> tuple[float, float]:
    """Wall time and wait of so much CPU time."""
    before_s, started_s, cpu_s = waited_s(), time.perf_counter(), time.thread_time()
    while time.thread_time() - cpu_s < seconds:
        pass
    after_s = waited_s()
    assert before_s is not None
    assert after_s is not None
    return time.perf_counter() - started_s, after_s - before_s


@pytest.mark.skipif(waited_s() is None, reason="this system counts no waits")
def test_what_a_competitor_takes_is_counted_and_sleep_is_not() -> None:
    before = os.sched_getaffinity(0)
    pin(1)
    try:
        rivals = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(2)]
        time.sleep(0.5)
        wall_s, wait_s = spin(0.2)
        for rival in rivals:
            rival.kill()
            rival.wait()
    finally:
        os.sched_setaffinity(0, before)
    assert wait_s > 0.1
    assert wall_s - wait_s == pytest.approx(0.2, rel=0.15)
    start_s = waited_s()
    time.sleep(0.3)
    end_s = waited_s()
    assert start_s is not None
    assert end_s is not None
    assert end_s - start_s < 0.2


def test_pinning_keeps_so_many_cpus() -> None:
    before = os.sched_getaffinity(0)
    try:
        pin(None)
        assert set(usable_cpus()) == before
        pin(1)
        assert usable_cpus() == (max(before),)
    finally:
        os.sched_setaffinity(0, before)


def test_memory_moves_into_huge_pages_and_keeps_its_content() -> None:
    data = np.arange(8 * HUGE_BYTES // 8)
    moved = collapse_memory()
    if moved == 0:
        pytest.skip("this system collapses nothing")
    assert huge_memory_bytes() > 4 * HUGE_BYTES
    assert (data == np.arange(data.size)).all()
    assert peak_memory_bytes() >= private_memory_bytes() >= data.nbytes
