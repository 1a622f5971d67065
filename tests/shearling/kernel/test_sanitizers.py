"""The C++ under AddressSanitizer and UBSan, on damaged matrices."""

from __future__ import annotations

import subprocess
from pathlib import Path

import openvino
import pytest

from shearling.kernel.build import SOURCES, find_compiler

UNITS = ("packed_matrix", "linear", "amx", "avx512", "avx512_arrange", "avx_vnni", "avx2", "portable", "tbb_threads")
FLAGS = ("-std=c++17", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-Wno-psabi")


@pytest.mark.slow
def test_no_damage_makes_the_kernels_read_outside(tmp_path):
    packages, driver = Path(openvino.__file__).parent, Path(__file__).with_name("fuzz_driver.cpp")
    libraries = [next((packages / "libs").glob("libtbb.so*")), f"-Wl,-rpath,{packages / 'libs'}"]
    sources = [str(SOURCES / f"{unit}.cpp") for unit in UNITS]
    includes = ["-isystem", str(packages / "include"), "-I", str(SOURCES)]
    binary = tmp_path / "fuzz"
    subprocess.run(
        [*find_compiler(), *FLAGS, *includes, str(driver), *sources, "-o", str(binary), *map(str, libraries)],
        check=True,
        timeout=600,
    )
    result = subprocess.run([binary, "1", "4000"], capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr[-4000:]
    passed, _, total, _ = result.stdout.split()
    # The undamaged quarter must get through, and most of the damaged must not.
    assert int(total) / 4 * 0.9 < int(passed) < int(total) / 2
