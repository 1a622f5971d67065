"""Kernels run nothing but what their processors have: in a copy of the library every other instruction is undefined."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shearling.kernel.build import build_library
from tests.support.instruction_sets import available
from tests.support.lesser_processors import NAMES, Instruction, instructions_of, lacking, write_without


@pytest.fixture(scope="module")
def instructions() -> list[Instruction]:
    return instructions_of(build_library())


def run_without(missing: list[Instruction], kernels: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Everything, by some kernels of a library without some instructions."""
    if not available(kernels):
        pytest.skip(f"this processor has no {kernels}")
    library = directory / build_library().name
    write_without(build_library(), missing, library)
    return subprocess.run(
        [sys.executable, "-m", "tests.support.lesser_processors", library, kernels],
        env={**os.environ, "SHEARLING_KERNEL": kernels},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.parametrize("kernels", NAMES)
def test_kernels_run_where_they_are_the_best(kernels, instructions, tmp_path):
    missing = lacking(kernels, instructions)
    assert missing
    done = run_without(missing, kernels, tmp_path)
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-3000:]}"


def test_what_a_processor_lacks_ends_a_process_there(instructions, tmp_path):
    done = run_without(lacking("avx512", instructions), "avx512_bf16", tmp_path)
    assert done.returncode == -signal.SIGILL
