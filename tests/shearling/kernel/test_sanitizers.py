"""The C++ under AddressSanitizer and UBSan: damaged matrices through the C interface, nodes of every operator with
damaged attributes, constants, shapes and types, and texts with constants of ours. More threads than this machine has,
under ThreadSanitizer, too.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import openvino
import pytest

from shearling.kernel.build import build_onnx_runtime_library
from shearling.kernel.compilation import (
    ONNX_RUNTIME_UNITS,
    OPENVINO_UNITS,
    SOURCES,
    find_compiler,
    find_headers,
)
from tests.support.instruction_sets import KERNELS
from tests.support.once_per_run import once_per_run
from tests.support.onnxruntime_headers import needs_headers

HERE = Path(__file__).parent
# Line numbers are all that a report shows. What null pointers and the ends of objects are checked for besides,
# AddressSanitizer sees by itself, and a check before every access makes compiling take a third as long again.
SANITIZERS = ("-g1", "-fsanitize=address,undefined", "-fno-sanitize=null,object-size,vptr", "-fno-sanitize-recover=all")
INSTRUCTIONS = set(re.findall(r"\bavx_vnni\b|\bavx512_vnni\b|\bavx512f\b", Path("/proc/cpuinfo").read_text()))
VNNI = () if "avx_vnni" in INSTRUCTIONS else ("-DSHEARLING_VNNI_OF_AVX512",)
"""Where a processor has the same products in another encoding alone, the kernels for AVX-VNNI run with these."""
FLAGS = ("-std=c++17", "-Wno-psabi", "-DSHEARLING_NEAR_BYTES=16384", *VNNI)
OPENVINO = Path(openvino.__file__).parent
CASES = int(os.environ.get("SHEARLING_FUZZ_CASES", "10000"))
"""For each set of kernels, of which four run nearly anywhere: half of them matrices, half nodes for OpenVINO."""
SEED = os.environ.get("SHEARLING_FUZZ_SEED", "1")
ONNX_CASES = CASES // 8


def sources(*left_out: str) -> list[Path]:
    """All units but some, and memory whose ends a sanitizer sees in place of huge pages."""
    names = {"huge_memory.cpp", *left_out}
    return [HERE / "exact_memory.cpp", *(file for file in sorted(SOURCES.glob("*.cpp")) if file.name not in names)]


def libraries() -> list[str | Path]:
    """What a program with operators of OpenVINO is linked against."""
    files = [next((OPENVINO / "libs").glob(f"{name}*")) for name in ("libopenvino.so", "libtbb.so")]
    return [*files, f"-Wl,-rpath,{OPENVINO / 'libs'}"]


def can_run(unit: Path) -> bool:
    """Whether this processor knows the instructions of a unit."""
    if unit.name.startswith("avx_vnni"):
        return not INSTRUCTIONS.isdisjoint({"avx_vnni", "avx512_vnni"})
    return "avx512f" in INSTRUCTIONS or not unit.name.startswith(("avx512", "amx"))


def compiled(units: Iterable[Path], directory: Path, *options: str | Path) -> list[Path]:
    """The objects of units; what never runs here is not instrumented, and last, so that what it shares with others is
    theirs.
    """
    objects = []
    for unit in sorted(units, key=lambda unit: not can_run(unit)):
        objects.append(directory / f"{'a' if can_run(unit) else 'z'}-{unit.stem}.o")
        how = ("-Og", *SANITIZERS) if can_run(unit) else ("-O0",)
        command = [*find_compiler(), *FLAGS, *how, "-fPIC", "-I", SOURCES, *options, "-c", unit, "-o", objects[-1]]
        subprocess.run(command, check=True, timeout=600)
    return objects


@pytest.fixture(scope="module")
def kernels_compiled(tmp_path_factory) -> list[Path]:
    """The objects that the program and the library for ONNX Runtime both have."""
    units = sources(*OPENVINO_UNITS, *ONNX_RUNTIME_UNITS)
    directory = once_per_run(tmp_path_factory, "sanitized-kernels", lambda directory: compiled(units, directory))
    return sorted(directory.glob("*.o"))


@pytest.fixture(scope="module")
def fuzz(kernels_compiled, tmp_path_factory) -> Path:
    """The program, compiled."""

    def make(directory: Path) -> None:
        units = [HERE / "fuzz.cpp", *(SOURCES / name for name in OPENVINO_UNITS)]
        objects = compiled(units, directory, "-isystem", OPENVINO / "include", "-I", HERE)
        command = [*find_compiler(), *SANITIZERS, *objects, *kernels_compiled, "-o", directory / "fuzz", *libraries()]
        subprocess.run(command, check=True, timeout=600)

    return once_per_run(tmp_path_factory, "fuzz", make) / "fuzz"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kernels", KERNELS)
def test_no_damage_makes_anything_read_or_write_outside(fuzz, kernels):
    def run(cases: int) -> list[str]:
        command, environment = [fuzz, SEED, str(cases)], {**os.environ, "SHEARLING_KERNEL": kernels}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout.splitlines()

    if run(0)[0] != kernels:
        pytest.skip(f"this processor has no {kernels}")
    counts = [tuple(map(int, line.split())) for line in run(CASES)[1:]]
    few = CASES // 128
    assert [cases for cases, _, _ in counts] == [CASES // 2, CASES // 2 - 3 * few, few, few, few]
    for cases, damaged, computed in counts:
        # What is sound gets through, and so does what a damage did not change; most of the damaged does not.
        assert cases - damaged <= computed < cases - damaged / 2


def run_program(parts: Sequence[str | Path], program: Path, *sanitizers: str) -> None:
    """Builds a program that prints what is not as it should be, and runs it."""
    subprocess.run([*find_compiler(), *FLAGS, *sanitizers, "-pthread", *parts, "-o", program], check=True, timeout=600)
    done = subprocess.run([program], capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr[-4000:]


def test_many_threads_share_work_in_order(tmp_path):
    units = [HERE / "phases.cpp", HERE / "exact_memory.cpp"]
    run_program(["-O1", "-I", SOURCES, "-I", HERE, *units], tmp_path / "phases", "-g1", "-fsanitize=thread")


def test_a_thread_keeps_its_place(tmp_path):
    units = [HERE / "places.cpp", SOURCES / "tbb_threads.cpp"]
    run_program(["-O1", "-isystem", OPENVINO / "include", "-I", SOURCES, *units, *libraries()], tmp_path / "places")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_threads_copy_what_they_multiply_by(kernels_compiled, tmp_path):
    objects = compiled([HERE / "placement.cpp"], tmp_path, "-I", HERE)
    run_program([*objects, *kernels_compiled], tmp_path / "placement", *SANITIZERS)


def fuzz_onnx(library: Path, cases: int, **environment: str) -> None:
    command = [sys.executable, HERE / "fuzz_onnx.py", library, SEED, str(cases)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **environment}, timeout=1500
    )
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-4000:]}"
    total, damaged, computed = map(int, done.stdout.split())
    assert total == cases
    assert cases - damaged <= computed < cases - damaged / 2


@needs_headers
def test_onnx_runtime_survives_damaged_files():
    fuzz_onnx(build_onnx_runtime_library(), 500)


@needs_headers
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_operator_of_onnx_runtime_reads_nothing_outside(kernels_compiled, tmp_path):
    library = tmp_path / "libfuzz.so"
    units = [SOURCES / name for name in ONNX_RUNTIME_UNITS]
    objects = compiled(units, tmp_path, "-I", find_headers())
    command = [*find_compiler(), *SANITIZERS, "-shared", *objects, *kernels_compiled, "-o", library]
    subprocess.run(command, check=True, timeout=600)
    runtimes = [
        subprocess.run(
            [*find_compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    # Python itself leaks by intent.
    fuzz_onnx(library, ONNX_CASES, LD_PRELOAD=" ".join(runtimes), ASAN_OPTIONS="detect_leaks=0")
