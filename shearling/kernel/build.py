"""The compiled libraries of this machine: those of the installed `shearling-runtime` where it was built from the same
sources for the same OpenVINO; else compiled once, and kept in the user's cache.

A library is code, so one from the cache is loaded only if nobody else could have put it there, and if it is still what
was written.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from shearling.artefact import sha256_file
from shearling.cache import CACHE_VARIABLE, cache_directory
from shearling.console import log
from shearling.errors import EnvironmentFault
from shearling.kernel.compilation import (
    FLAGS,
    KERNELS,
    ONNX_RUNTIME_LIBRARY,
    OPENVINO_LIBRARY,
    SOURCES,
    SOURCES_CALLED,
    LibraryPlan,
    compile_kernels,
    compile_library,
    compiler_version,
    digest_of,
    find_compiler,
    kernel_files,
    library_files,
    onnx_runtime_plan,
    openvino_plan,
    source_files,
)
from shearling.kernel.prebuilt import find_prebuilt, require_prebuilt
from shearling.kernel.private_files import make_private_directory, require_private


@functools.cache
def build_library(*, sources: Path = SOURCES) -> Path:
    """The library for OpenVINO and for Python on this machine, compiled where it has to be: half a minute to one.

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
    """The library for ONNX Runtime on this machine, compiled where it has to be: half a minute to one.

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


def build_kernels(*, sources: Path = SOURCES) -> Path:
    """What both libraries have in common, one object; compiled where it has to be.

    Raises:
        CompilerMissing: no compiler, or it fails.
        EnvironmentFault: others can write to the cache, or there is no place for one.
    """
    compiler, directory = find_compiler(), _directory()
    with _usable(directory), _one_at_a_time(directory):
        return _kernels(directory, compiler, sources)


def _build(make_plan: Callable[[], LibraryPlan], sources: Path) -> Path:
    compiler = find_compiler()
    plan = make_plan()
    directory = _directory()
    path = directory / _key(library_files(sources, plan), *_told(compiler), plan.identity) / plan.name
    with _usable(directory):
        if _is_kept(path):
            return path
        _make(path, plan, directory, compiler, sources)
    return path


def _make(path: Path, plan: LibraryPlan, directory: Path, compiler: Sequence[str], sources: Path) -> None:
    with _one_at_a_time(directory):
        if not _is_kept(path):
            log.print(f"compiling the sparse kernels with {compiler[0]}, once")
            kernels = _kernels(directory, compiler, sources)
            _keep(path, partial(compile_library, plan=plan, kernels=kernels, compiler=compiler, sources=sources))


def _kernels(directory: Path, compiler: Sequence[str], sources: Path) -> Path:
    path = directory / _key(kernel_files(sources), *_told(compiler)) / KERNELS
    if not _is_kept(path):
        _keep(path, partial(compile_kernels, compiler=compiler, sources=sources))
    return path


def _directory() -> Path:
    cache = cache_directory()
    if cache is None:
        raise EnvironmentFault(
            "this user has no home directory to keep the compiled kernels in",
            remedy=f"Name a directory in {CACHE_VARIABLE}",
        )
    return cache / "kernels"


@contextmanager
def _usable(directory: Path) -> Iterator[None]:
    """Say of a cache that cannot be written or read what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM):
            raise
        raise EnvironmentFault(
            f"the compiled kernels cannot be kept here: {error.strerror or error}",
            where=directory,
            remedy=f"Name a directory of your own in {CACHE_VARIABLE}",
        ) from error


def _told(compiler: Sequence[str]) -> list[str]:
    """What the compiler is, and for what it compiles: a cache may be shared by machines of several kinds."""
    machine = [platform.machine(), *platform.libc_ver()]
    native = [_processor_flags()] if any("native" in word for word in compiler) else []
    return [*compiler, compiler_version(compiler), *machine, *native]


def _processor_flags() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _key(files: list[Path], *parts: str) -> str:
    """Digest over all that decides what is compiled."""
    return hashlib.sha256("\n".join([*parts, *FLAGS, SOURCES_CALLED, digest_of(files)]).encode()).hexdigest()[:32]


def _is_kept(path: Path) -> bool:
    """Whether code is there, and still what was written."""
    digest_file = _digest_file(path)
    if not (path.is_file() and digest_file.is_file()):
        return False
    require_private(path)
    require_private(digest_file)
    if sha256_file(path) == digest_file.read_text(encoding="ascii").strip():
        return True
    log.print(f"the compiled sparse kernels in {path.parent} have changed since they were written")
    return False


def _keep(path: Path, compile_into: Callable[[Path], None]) -> None:
    make_private_directory(path.parent)
    require_private(path.parent)
    compile_into(path)
    digest_file = _digest_file(path)
    digest_file.write_text(sha256_file(path) + "\n", encoding="ascii")
    for file in (path, digest_file):
        file.chmod(0o600)


def _digest_file(path: Path) -> Path:
    return path.with_suffix(".sha256")


@contextmanager
def _one_at_a_time(directory: Path) -> Iterator[None]:
    """Lets processes that need the same code wait for the one that compiles it."""
    make_private_directory(directory)
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        # Where a file system has no locks, some may compile the same.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
