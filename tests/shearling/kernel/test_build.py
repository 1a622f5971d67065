"""Building the libraries: what is missing is said, and nothing half made stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from shearling.errors import CompilerMissing, PackageMissing
from shearling.kernel import build
from shearling.kernel.build import build_library, build_onnx_runtime_library, find_compiler, find_headers


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


def test_the_named_compiler_is_taken_or_missed(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -O9")
    with pytest.raises(CompilerMissing, match="no-such-compiler was not found"):
        find_compiler()
    monkeypatch.setenv("CXX", "sh -x")
    assert find_compiler() == ["sh", "-x"]


def test_a_failing_compiler_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(CompilerMissing, match=r"could not compile.*g\+\+ 11 or newer"):
        build_library()
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_lines_are_as_wide_as_everywhere():
    sources = [*build.SOURCES.iterdir(), *Path(__file__).parent.glob("*.cpp")]
    wide = [
        f"{file.name}:{number}"
        for file in sources
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        if len(line) > 120
    ]
    assert wide == []


def test_a_built_library_is_found_again_and_other_sources_are_built_anew(monkeypatch, tmp_path):
    compiled = []

    def compile_library(path, **arguments):
        compiled.append(arguments["sources"])
        path.write_bytes(b"library")

    monkeypatch.setattr(build, "compile_library", compile_library)
    first = build_library()
    build_library.cache_clear()
    assert build_library() == first
    assert len(compiled) == 1
    changed = tmp_path / "sources"
    changed.mkdir()
    (changed / "other.cpp").write_text("int x;\n")
    assert build_library(sources=changed) != first
    assert len(compiled) == 2


def test_headers_are_found_where_they_are_named_or_installed(monkeypatch, tmp_path):
    usual, named = tmp_path / "usual", tmp_path / "named"
    for directory in (usual, named):
        directory.mkdir()
        (directory / "onnxruntime_c_api.h").write_text("#define ORT_API_VERSION 21\n")
    monkeypatch.setattr(build, "HEADER_PLACES", (str(tmp_path / "absent"), str(usual)))
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


def test_other_headers_make_another_library(monkeypatch, tmp_path):
    def compile_library(path, **_):
        path.write_bytes(b"library")

    monkeypatch.setattr(build, "compile_library", compile_library)
    monkeypatch.setenv("ONNXRUNTIME_INCLUDE", str(tmp_path))
    found = []
    for version in (21, 22):
        (tmp_path / "onnxruntime_c_api.h").write_text(f"#define ORT_API_VERSION {version}\n")
        build_onnx_runtime_library.cache_clear()
        found.append(build_onnx_runtime_library())
    assert found[0] != found[1]
    assert found[0].name == "libshearling_onnxruntime.so"
