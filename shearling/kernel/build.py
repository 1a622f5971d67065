"""The compiled libraries: each built once from the sources in shearling/kernel/cpp, kept in the user's cache.

Both hold the kernels. One has their C interface and the operators for OpenVINO: it links against the `openvino` that
is installed and takes its headers and its thread pool from that wheel, so nothing beside a compiler is needed. The
other has the operator for ONNX Runtime: it needs the headers of its C interface, which no wheel brings, and links
against nothing.

The compiler is g++ 11 or newer. Every unit chooses its instruction set by `#pragma GCC target`, which clang++ does not
read, so that one library serves all processors; 10 was the first version to know `avx512bf16`, 11 the first with
`amx-tile`. It must also use the C++ library that the wheel was built with (libstdc++), which rules out `zig c++`.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from shearling.cache import cache_directory
from shearling.console import log
from shearling.errors import CompilerMissing, EnvironmentFault, PackageMissing

SOURCES = Path(__file__).with_name("cpp")
COMPILER = "g++"
NEEDED = "g++ 11 or newer, the first that knows AMX"
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi")
TIMEOUT_S = 600
OPENVINO_UNITS = ("library.cpp", "openvino_operators.cpp", "tbb_threads.cpp")
ONNX_RUNTIME_UNITS = ("onnx_runtime_operators.cpp",)
"""What one library alone is made of; the other units are in both."""
HEADERS_VARIABLE = "ONNXRUNTIME_INCLUDE"
HEADER = "onnxruntime_c_api.h"
LEAST_HEADER_VERSION = 17
"""With it came parallel loops for operators (1.17)."""
HEADER_PLACES = ("/usr/include/onnxruntime", "/usr/local/include/onnxruntime", "/usr/include", "/usr/local/include")


@dataclass(frozen=True)
class LibraryPlan:
    """A library to build.

    Attributes:
        name: of its file.
        left_out: units that are not in it.
        arguments: for compiler and linker: headers and libraries of the runtime.
        identity: what these are.
    """

    name: str
    left_out: tuple[str, ...]
    arguments: tuple[str, ...]
    identity: str


@functools.cache
def build_library(*, sources: Path = SOURCES) -> Path:
    """The library for OpenVINO and for Python on this machine, compiled if it is not in the cache yet (about 10 s).

    Returns:
        What `openvino.Core().add_extension` and the `extensions` of `openvino_genai.LLMPipeline` take.

    Raises:
        PackageMissing: openvino is not installed.
        CompilerMissing: no compiler, or it fails.
        EnvironmentFault: this openvino cannot be linked against.
    """
    compiler = find_compiler()
    return _build(_openvino_plan(), compiler=compiler, sources=sources)


@functools.cache
def build_onnx_runtime_library(*, sources: Path = SOURCES) -> Path:
    """The library for ONNX Runtime on this machine, compiled if it is not in the cache yet (about 10 s).

    Returns:
        What `onnxruntime.SessionOptions.register_custom_ops_library` takes.

    Raises:
        PackageMissing: the headers of ONNX Runtime are not installed.
        CompilerMissing: no compiler, or it fails.
    """
    compiler = find_compiler()
    return _build(_onnx_runtime_plan(), compiler=compiler, sources=sources)


def find_headers() -> Path:
    """Directory of ONNX Runtime's C interface: `ONNXRUNTIME_INCLUDE`, else where Debian and others install it.

    Raises:
        PackageMissing: it is not there, or too old.
    """
    chosen = os.environ.get(HEADERS_VARIABLE)
    for directory in [Path(chosen)] if chosen else map(Path, HEADER_PLACES):
        if (directory / HEADER).is_file():
            _require_version(directory / HEADER)
            return directory
    raise PackageMissing(
        f"the sparse operator of ONNX Runtime needs {HEADER}, which is not in {chosen or ' or '.join(HEADER_PLACES)}",
        remedy="Install the headers (on Debian: apt install libonnxruntime-dev), or name their "
        f"directory in {HEADERS_VARIABLE}; OpenVINO needs none",
    )


def _require_version(header: Path) -> None:
    found = re.search(r"#define\s+ORT_API_VERSION\s+(\d+)", header.read_text(encoding="utf-8", errors="replace"))
    version = int(found[1]) if found else 0
    if version < LEAST_HEADER_VERSION:
        raise PackageMissing(
            f"the headers of ONNX Runtime are of version 1.{version}, the sparse operator needs "
            f"1.{LEAST_HEADER_VERSION} or newer",
            where=header,
            remedy=f"Install newer headers, or name the directory of others in {HEADERS_VARIABLE}; OpenVINO needs none",
        )


def find_compiler() -> list[str]:
    """The command of the C++ compiler: `CXX`, else g++.

    Raises:
        CompilerMissing: there is none.
    """
    command = shlex.split(os.environ.get("CXX", "")) or [COMPILER]
    if not shutil.which(command[0]):
        raise CompilerMissing(
            f"the sparse kernels need {NEEDED}: {command[0]} was not found",
            remedy="Install it (on Debian: apt install g++), or name it in CXX; the stock kernels need none",
        )
    return command


def _openvino_plan() -> LibraryPlan:
    spec = importlib.util.find_spec("openvino")
    if spec is None or spec.origin is None:
        raise PackageMissing("the package openvino is not installed", remedy="pip install openvino")
    openvino = Path(spec.origin).parent
    libraries = [
        file for name in ("libopenvino.so", "libtbb.so") for file in sorted((openvino / "libs").glob(f"{name}*"))[:1]
    ]
    if len(libraries) != 2:
        raise EnvironmentFault(
            "this openvino brings no libraries to link against",
            where=openvino,
            remedy="Install openvino from its wheel on Linux",
        )
    return LibraryPlan(
        name="libshearling_openvino.so",
        left_out=ONNX_RUNTIME_UNITS,
        arguments=("-isystem", str(openvino / "include"), *map(str, libraries), f"-Wl,-rpath,{openvino / 'libs'}"),
        identity=f"{importlib.metadata.version('openvino')} {openvino}",
    )


def _onnx_runtime_plan() -> LibraryPlan:
    include = find_headers()
    return LibraryPlan(
        name="libshearling_onnxruntime.so",
        left_out=OPENVINO_UNITS,
        # Not -isystem, which puts /usr/include before the headers of C++ that must precede it.
        arguments=("-I", str(include)),
        identity=f"{hashlib.sha256((include / HEADER).read_bytes()).hexdigest()} {include}",
    )


def _build(plan: LibraryPlan, *, compiler: list[str], sources: Path) -> Path:
    path = cache_directory() / "kernels" / _key(plan, compiler=compiler, sources=sources) / plan.name
    if not path.is_file():
        log.print(f"compiling the sparse kernels with {compiler[0]}, once")
        path.parent.mkdir(parents=True, exist_ok=True)
        compile_library(path, plan=plan, compiler=compiler, sources=sources)
    return path


def _key(plan: LibraryPlan, *, compiler: list[str], sources: Path) -> str:
    """Digest over all that decides what the library is."""
    version = subprocess.run(
        [*compiler, "--version"], capture_output=True, text=True, check=False, timeout=TIMEOUT_S
    ).stdout
    digest = hashlib.sha256("\n".join([*compiler, version, *FLAGS, plan.identity]).encode())
    for file in _source_files(plan, sources):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:32]


def _source_files(plan: LibraryPlan, sources: Path) -> list[Path]:
    return sorted(
        file for file in sources.iterdir() if file.suffix in {".cpp", ".hpp", ".inc"} and file.name not in plan.left_out
    )


def compile_library(path: Path, *, plan: LibraryPlan, compiler: list[str], sources: Path) -> None:
    """Compile into `path`, which is complete or absent.

    Raises:
        CompilerMissing: the compiler fails.
    """
    units = [str(file) for file in _source_files(plan, sources) if file.suffix == ".cpp"]
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".build-") as temporary:
        built = Path(temporary) / path.name
        command = [*compiler, *FLAGS, *units, "-o", str(built), *plan.arguments]
        process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
        if process.returncode != 0:
            lines = (
                [line for line in process.stderr.splitlines() if "error" in line]
                or process.stderr.splitlines()
                or ["no output"]
            )
            raise CompilerMissing(
                f"{compiler[0]} could not compile the sparse kernels: {lines[0].strip()}",
                remedy=f"They need {NEEDED}; CXX names another compiler",
            )
        built.replace(path)
