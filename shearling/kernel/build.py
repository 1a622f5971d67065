"""The compiled libraries of this machine: those of the installed `shearling-runtime` where it was built from the same
sources for the same OpenVINO; else compiled once, and kept in the user's cache.

A library is code, so one from the cache is loaded only if nobody else could have put it there, and if it is still what
was written.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path

from shearling.artefact import sha256_file
from shearling.cache import CACHE_VARIABLE, cache_directory
from shearling.console import log
from shearling.errors import EnvironmentFault
from shearling.kernel.compilation import (
    FLAGS,
    ONNX_RUNTIME_LIBRARY,
    OPENVINO_LIBRARY,
    SOURCES,
    SOURCES_CALLED,
    LibraryPlan,
    compile_library,
    compiler_version,
    digest_of,
    find_compiler,
    onnx_runtime_plan,
    openvino_plan,
    source_files,
)
from shearling.kernel.prebuilt import find_prebuilt, require_prebuilt
from shearling.kernel.private_files import make_private_directory, require_private


@functools.cache
def build_library(*, sources: Path = SOURCES) -> Path:
    """The library for OpenVINO and for Python on this machine, compiled where it has to be (about 10 s).

    Returns:
        What `openvino.Core().add_extension` and the `extensions` of `openvino_genai.LLMPipeline` take.

    Raises:
        PackageMissing: openvino is not installed; or neither sources nor prebuilt libraries are.
        CompilerMissing: no compiler, or it fails.
        EnvironmentFault: this openvino cannot be linked against, others can write to the cache, or there is no place
            for one.
    """
    return _provide(OPENVINO_LIBRARY, openvino_plan, sources)


@functools.cache
def build_onnx_runtime_library(*, sources: Path = SOURCES) -> Path:
    """The library for ONNX Runtime on this machine, compiled where it has to be (about 10 s).

    Returns:
        What `onnxruntime.SessionOptions.register_custom_ops_library` takes.

    Raises:
        PackageMissing: the headers of ONNX Runtime are not installed; or neither sources nor prebuilt libraries are.
        CompilerMissing: no compiler, or it fails.
        EnvironmentFault: others can write to the cache, or there is no place for one.
    """
    return _provide(ONNX_RUNTIME_LIBRARY, onnx_runtime_plan, sources)


def _provide(name: str, plan: Callable[[], LibraryPlan], sources: Path) -> Path:
    if not sources.is_dir():
        return require_prebuilt(name)
    prebuilt = find_prebuilt(name, sources=digest_of(source_files(sources)))
    return prebuilt or _build(plan, sources)


def _build(make_plan: Callable[[], LibraryPlan], sources: Path) -> Path:
    compiler = find_compiler()
    plan = make_plan()
    cache = cache_directory()
    if cache is None:
        raise EnvironmentFault(
            "this user has no home directory to keep the compiled kernels in",
            remedy=f"Name a directory in {CACHE_VARIABLE}",
        )
    path = cache / "kernels" / _key(plan, compiler=compiler, sources=sources) / plan.name
    digest_file = path.with_suffix(".sha256")
    if path.is_file() and digest_file.is_file():
        require_private(path)
        require_private(digest_file)
        if sha256_file(path) == digest_file.read_text(encoding="ascii").strip():
            return path
        log.print(f"the compiled sparse kernels in {path.parent} have changed since they were written")
    log.print(f"compiling the sparse kernels with {compiler[0]}, once")
    make_private_directory(path.parent)
    require_private(path.parent)
    compile_library(path, plan=plan, compiler=compiler, sources=sources)
    digest_file.write_text(sha256_file(path) + "\n", encoding="ascii")
    for file in (path, digest_file):
        file.chmod(0o600)
    return path


def _key(plan: LibraryPlan, *, compiler: list[str], sources: Path) -> str:
    """Digest over all that decides what the library is."""
    parts = [*compiler, compiler_version(compiler), *FLAGS, SOURCES_CALLED, plan.identity]
    files = digest_of(source_files(sources, left_out=plan.left_out))
    return hashlib.sha256("\n".join([*parts, files]).encode()).hexdigest()[:32]
