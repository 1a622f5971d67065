"""Building the libraries: what is missing is said, and nothing half made stays."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shearling.errors import CompilerMissing, EnvironmentFault, PackageMissing
from shearling.kernel import build, compilation, openvino_extension
from shearling.kernel.build import build_kernels, build_library, build_onnx_runtime_library
from shearling.kernel.compilation import find_compiler, find_headers
from shearling.kernel.library import load_library
from shearling.kernel.runtime_refusal import refusals
from tests.support.users import without_home


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SHEARLING_CACHE", str(tmp_path / "cache"))
    for function in (build_library, build_onnx_runtime_library):
        function.cache_clear()
    yield
    for function in (build_library, build_onnx_runtime_library):
        function.cache_clear()


def test_no_compiler_is_an_environment_fault_with_a_remedy(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CompilerMissing, match=r"apt install g\+\+") as caught:
        build_library()
    assert caught.value.exit_code == 4


def test_no_place_for_a_cache_is_an_environment_fault_with_a_remedy(monkeypatch):
    without_home(monkeypatch)
    with pytest.raises(EnvironmentFault, match=r"no home.*SHEARLING_CACHE") as caught:
        build_library()
    assert caught.value.exit_code == 4


def test_a_cache_that_cannot_be_written_is_an_environment_fault_with_a_remedy(monkeypatch):
    """Even for root: nothing can be made there."""
    monkeypatch.setenv("SHEARLING_CACHE", "/proc/shearling")
    for make in (build_library, build_kernels):
        with pytest.raises(EnvironmentFault, match=r"cannot be kept here.*SHEARLING_CACHE") as caught:
            make()
        assert caught.value.exit_code == 4


def test_a_full_disk_is_no_fault_of_the_place(monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(build, "make_private_directory", full)
    with pytest.raises(OSError, match="No space left"):
        build_kernels()


def test_a_library_that_the_system_does_not_load_is_no_fault_of_a_model(monkeypatch, tmp_path):
    library = tmp_path / "libshearling_openvino.so"
    library.write_bytes(b"of another machine")
    monkeypatch.setattr("shearling.kernel.library.build_library", lambda: library)
    for load in (load_library.__wrapped__, lambda: openvino_extension._load.__wrapped__(library)):
        with pytest.raises(EnvironmentFault, match=r"cannot be loaded.*SHEARLING_CACHE"), refusals(tmp_path):
            load()


def test_machines_of_several_kinds_may_share_a_cache(monkeypatch):
    told = build._told(["g++"])
    monkeypatch.setattr("platform.machine", lambda: "another")
    other = build._told(["g++"])
    assert told != other
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.17"))
    assert build._told(["g++"]) not in (told, other)
    # What is compiled for the processor at hand is not for others.
    monkeypatch.setattr(build, "_processor_flags", lambda: "flags: sse avx2")
    assert "flags: sse avx2" in build._told(["g++", "-march=native"])
    assert "flags: sse avx2" not in build._told(["g++"])


def test_the_named_compiler_is_taken_or_missed(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -O9")
    with pytest.raises(CompilerMissing, match="no-such-compiler was not found"):
        find_compiler()
    monkeypatch.setenv("CXX", "sh -x")
    assert find_compiler() == ["sh", "-x"]
    monkeypatch.setenv("CXX", "g++ '-O9")
    with pytest.raises(CompilerMissing, match=r"CXX is no command: No closing quotation: g\+\+ '-O9"):
        find_compiler()


def test_a_failing_compiler_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(CompilerMissing, match=r"could not compile.*g\+\+ 11 or newer"):
        build_library()
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def write_compiler(path: Path, answer: str) -> str:
    """A compiler that is a shell script."""
    path.write_text(f"#!/bin/sh\n{answer}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("macros", "reason"),
    [
        ({"__GNUC__": 4, "__clang__": 1}, r"a clang, which does not read #pragma GCC target\. They need g\+\+ 11"),
        ({"__GNUC__": 10}, r"it is version 10\. They need g\+\+ 11"),
    ],
)
def test_another_compiler_is_refused_before_it_fails(monkeypatch, tmp_path, macros, reason):
    lines = "\n".join(f"echo '#define {name} {value}'" for name, value in macros.items())
    monkeypatch.setenv("CXX", write_compiler(tmp_path / "compiler", lines))
    with pytest.raises(CompilerMissing, match=reason) as caught:
        build_library()
    assert caught.value.exit_code == 4


def test_a_compiler_that_hangs_is_stopped_with_all_that_it_started(monkeypatch, tmp_path):
    answer = f"""case "$*" in
    *-dM*) echo '#define __GNUC__ 12';;
    *--version*) echo 12;;
    *) sleep 1000 & echo $! >> {tmp_path}/children; wait;;
    esac"""
    monkeypatch.setenv("CXX", write_compiler(tmp_path / "compiler", answer))
    monkeypatch.setattr(compilation, "TIMEOUT_S", 1.0)
    with pytest.raises(CompilerMissing, match="stopped after 1 s without coming to an end") as caught:
        build_library()
    assert caught.value.exit_code == 4
    children = (tmp_path / "children").read_text().split()
    assert len(children) == len(os.sched_getaffinity(0))
    assert all(is_gone(int(child)) for child in children)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


@pytest.fixture
def written(monkeypatch, tmp_path) -> Callable[[], list[str]]:
    """Names of what a compiler has written that takes a moment for each, and compiles nothing."""
    log = tmp_path / "written"
    log.touch()
    answer = f"""case "$*" in
    *-dM*) echo '#define __GNUC__ 12';;
    *--version*) echo 12;;
    *)
        while [ "$1" != -o ]; do shift; done
        sleep 0.05
        echo code > "$2"
        basename "$2" >> {log};;
    esac"""
    monkeypatch.setenv("CXX", write_compiler(tmp_path / "compiler", answer))
    return lambda: log.read_text().split()


def test_what_both_libraries_hold_is_compiled_once(written, monkeypatch, tmp_path):
    (tmp_path / "onnxruntime_c_api.h").write_text("#define ORT_API_VERSION 21\n")
    monkeypatch.setenv("ONNXRUNTIME_INCLUDE", str(tmp_path))
    build_library()
    first = written()
    assert {"avx2.o", "kernels.o", "openvino_operators.o", "libshearling_openvino.so"} <= set(first)
    assert "onnx_runtime_operators.o" not in first
    build_onnx_runtime_library()
    assert sorted(written()[len(first) :]) == ["libshearling_onnxruntime.so", "onnx_runtime_operators.o"]


def test_processes_that_need_it_at_once_compile_it_once(written):
    command = [sys.executable, "-c", "from shearling.kernel.build import build_library; print(build_library())"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = {process.communicate(timeout=60)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(answers) == 1
    assert Path(answers.pop().strip()).read_text() == "code\n"
    assert len(written()) == len(set(written()))


def is_gone(process: int) -> bool:
    """Within a second; a process that nobody has waited for yet does nothing any more either."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


@pytest.fixture
def compiled(monkeypatch) -> list[Path]:
    """What was compiled, by a compiler that only writes the number of its turn."""
    paths: list[Path] = []

    def compile_library(path, *, kernels, **_):
        assert kernels.read_bytes() == b"kernels"
        paths.append(path)
        path.write_bytes(f"library {len(paths)}".encode())

    monkeypatch.setattr(build, "compile_kernels", lambda path, **_: path.write_bytes(b"kernels"))
    monkeypatch.setattr(build, "compile_library", compile_library)
    return paths


def test_a_built_library_is_found_again_and_other_sources_are_built_anew(compiled, tmp_path):
    first = build_library()
    build_library.cache_clear()
    assert build_library() == first
    assert len(compiled) == 1
    changed = tmp_path / "sources"
    changed.mkdir()
    (changed / "other.cpp").write_text("int x;\n")
    assert build_library(sources=changed) != first
    assert len(compiled) == 2


def test_what_libraries_have_in_common_is_compiled_once(compiled, monkeypatch):
    turns = iter(range(1, 10))
    monkeypatch.setattr(build, "compile_kernels", lambda path, **_: path.write_bytes(b"kernels" * next(turns)))
    kernels = build_kernels()
    assert build_kernels() == kernels
    assert build_library().read_bytes() == b"library 1"
    assert kernels.read_bytes() == b"kernels"
    kernels.write_bytes(b"kernelz")
    assert build_kernels().read_bytes() == b"kernels" * 2


def test_a_library_that_has_changed_is_built_anew(compiled, capsys):
    path = build_library()
    path.write_bytes(b"librarx 1")
    build_library.cache_clear()
    assert build_library() == path
    assert path.read_bytes() == b"library 2"
    assert "have changed since they were written" in capsys.readouterr().err


def test_what_is_built_is_for_this_user_alone_whatever_the_umask(compiled, tmp_path):
    before = os.umask(0)
    try:
        path = build_library()
    finally:
        os.umask(before)
    for directory in (path.parent, path.parent.parent, tmp_path / "cache"):
        assert directory.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o022 == 0


@pytest.mark.parametrize("place", ["library", "digest", "directory", "cache"])
def test_a_library_that_others_could_have_written_is_not_loaded(compiled, tmp_path, place):
    path = build_library()
    places = {
        "library": path,
        "digest": path.with_suffix(".sha256"),
        "directory": path.parent,
        "cache": tmp_path / "cache",
    }
    places[place].chmod(places[place].stat().st_mode | 0o002)
    build_library.cache_clear()
    with pytest.raises(EnvironmentFault, match=r"others can write.*mode is .*w.*chmod go-w") as caught:
        build_library()
    assert caught.value.exit_code == 4
    assert caught.value.where == str(places[place].resolve())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("prepared", ["library", "directory"])
def test_what_another_user_has_put_there_is_not_loaded(compiled, prepared):
    path = build_library()
    stolen = path if prepared == "library" else path.parent
    if prepared == "directory":
        path.with_suffix(".sha256").unlink()
    else:
        path.write_bytes(b"another")
        path.with_suffix(".sha256").write_text(hashlib.sha256(b"another").hexdigest())
    os.chown(stolen, 12345, 12345)
    build_library.cache_clear()
    with pytest.raises(EnvironmentFault, match="it belongs to user 12345"):
        build_library()
    assert len(compiled) == 1


def test_a_sticky_directory_of_all_may_be_above(compiled, monkeypatch, tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    monkeypatch.setenv("SHEARLING_CACHE", str(shared / "mine"))
    assert build_library().is_file()
    shared.chmod(0o777)
    build_library.cache_clear()
    with pytest.raises(EnvironmentFault, match="others can write"):
        build_library()


def test_without_sources_and_prebuilt_libraries_the_error_names_the_package(tmp_path):
    with pytest.raises(EnvironmentFault, match="shearling-runtime") as caught:
        build_library(sources=tmp_path / "absent")
    assert caught.value.exit_code == 4


def test_headers_are_found_where_they_are_named_or_installed(monkeypatch, tmp_path):
    usual, named = tmp_path / "usual", tmp_path / "named"
    for directory in (usual, named):
        directory.mkdir()
        (directory / "onnxruntime_c_api.h").write_text("#define ORT_API_VERSION 21\n")
    monkeypatch.setattr(compilation, "HEADER_PLACES", (str(tmp_path / "absent"), str(usual)))
    monkeypatch.delenv("ONNXRUNTIME_INCLUDE", raising=False)
    assert find_headers() == usual
    monkeypatch.setenv("ONNXRUNTIME_INCLUDE", str(named))
    assert find_headers() == named


def test_missing_headers_are_an_environment_fault_with_a_remedy(monkeypatch, tmp_path):
    monkeypatch.setenv("ONNXRUNTIME_INCLUDE", str(tmp_path))
    with pytest.raises(PackageMissing, match=r"apt install libonnxruntime-dev.*ONNXRUNTIME_INCLUDE") as caught:
        build_onnx_runtime_library()
    assert caught.value.exit_code == 4
    assert str(tmp_path) in caught.value.message


def test_headers_that_are_too_old_are_named_as_such(monkeypatch, tmp_path):
    (tmp_path / "onnxruntime_c_api.h").write_text("#define ORT_API_VERSION 16\n")
    monkeypatch.setenv("ONNXRUNTIME_INCLUDE", str(tmp_path))
    with pytest.raises(PackageMissing, match=r"of version 1\.16, .* 1\.17 or newer") as caught:
        find_headers()
    assert caught.value.exit_code == 4


def test_other_headers_make_another_library(compiled, monkeypatch, tmp_path):
    monkeypatch.setenv("ONNXRUNTIME_INCLUDE", str(tmp_path))
    found = []
    for version in (21, 22):
        (tmp_path / "onnxruntime_c_api.h").write_text(f"#define ORT_API_VERSION {version}\n")
        build_onnx_runtime_library.cache_clear()
        found.append(build_onnx_runtime_library())
    assert found[0] != found[1]
    assert found[0].name == "libshearling_onnxruntime.so"
