"""Building the library: what is missing is said, and nothing half made stays."""

from __future__ import annotations

import pytest

from shearling.errors import CompilerMissing
from shearling.sparse_linear import build
from shearling.sparse_linear.build import build_library, find_compiler


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SHEARLING_CACHE", str(tmp_path / "cache"))
    build_library.cache_clear()
    yield
    build_library.cache_clear()


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
    with pytest.raises(CompilerMissing, match="could not compile"):
        build_library()
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


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
