"""The compiled library: built once from the sources in serve/kernels, kept in the user's cache.

One shared library holds the kernels, their C interface and the operators for OpenVINO. It links against the `openvino` that is
installed and takes its headers and its thread pool from that wheel, so nothing beside a C++17 compiler is needed. The
compiler must use the C++ library that the wheel was built with (libstdc++), which rules out `zig c++`.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from shearling.cache import cache_directory
from shearling.console import log
from shearling.errors import CompilerMissing, EnvironmentFault, PackageMissing

SOURCES = Path(__file__).parents[2] / "serve" / "kernels"
LIBRARY = "libshearling_openvino.so"
COMPILERS = ("g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi")
TIMEOUT_S = 600


@functools.cache
def build_library(*, sources: Path = SOURCES) -> Path:
    """The library for this machine, compiled if it is not in the cache yet (about 10 s).

    Returns:
        What `openvino.Core().add_extension` and the `extensions` of `openvino_genai.LLMPipeline` take.

    Raises:
        PackageMissing: openvino is not installed.
        CompilerMissing: no compiler, or it fails.
    """
    compiler = find_compiler()
    openvino = _openvino_directory()
    path = cache_directory() / "kernels" / _key(sources, compiler) / LIBRARY
    if not path.is_file():
        log.print(f"compiling the sparse kernels with {compiler[0]}, once")
        path.parent.mkdir(parents=True, exist_ok=True)
        compile_library(path, compiler=compiler, sources=sources, openvino=openvino)
    return path


def find_compiler() -> list[str]:
    """The command of a C++ compiler: `CXX`, else g++, else clang++.

    Raises:
        CompilerMissing: there is none.
    """
    chosen = shlex.split(os.environ.get("CXX", ""))
    for command in [chosen] if chosen else [[name] for name in COMPILERS]:
        if shutil.which(command[0]):
            return command
    raise CompilerMissing(
        f"the sparse kernels need a C++ compiler: {chosen[0] if chosen else ' or '.join(COMPILERS)} was not found",
        remedy="Install one (on Debian: apt install g++), or name one in CXX; the stock kernels need none",
    )


def _openvino_directory() -> Path:
    spec = importlib.util.find_spec("openvino")
    if spec is None or spec.origin is None:
        raise PackageMissing("the package openvino is not installed", remedy="pip install openvino")
    return Path(spec.origin).parent


def _key(sources: Path, compiler: list[str]) -> str:
    """Digest over all that decides what the library is."""
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False, timeout=TIMEOUT_S).stdout
    digest = hashlib.sha256("\n".join([*compiler, version, *FLAGS, importlib.metadata.version("openvino"), str(_openvino_directory())]).encode())
    for file in _source_files(sources):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:32]


def _source_files(sources: Path) -> list[Path]:
    return sorted(file for file in sources.iterdir() if file.suffix in {".cpp", ".hpp", ".inc"})


def compile_library(path: Path, *, compiler: list[str], sources: Path, openvino: Path) -> None:
    """Compile into `path`, which is complete or absent.

    Raises:
        CompilerMissing: the compiler fails.
        EnvironmentFault: this openvino cannot be linked against.
    """
    libraries = [file for name in ("libopenvino.so", "libtbb.so") for file in sorted((openvino / "libs").glob(f"{name}*"))[:1]]
    if len(libraries) != 2:
        raise EnvironmentFault("this openvino brings no libraries to link against", where=openvino, remedy="Install openvino from its wheel on Linux")
    units = [str(file) for file in _source_files(sources) if file.suffix == ".cpp"]
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".build-") as temporary:
        built = Path(temporary) / path.name
        links = [*map(str, libraries), f"-Wl,-rpath,{openvino / 'libs'}"]
        command = [*compiler, *FLAGS, "-isystem", str(openvino / "include"), *units, "-o", str(built), *links]
        process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
        if process.returncode != 0:
            lines = [line for line in process.stderr.splitlines() if "error" in line] or process.stderr.splitlines() or ["no output"]
            raise CompilerMissing(
                f"{compiler[0]} could not compile the sparse kernels: {lines[0].strip()}",
                remedy="Use g++ 9 or clang++ 12 or newer with libstdc++; CXX names another compiler",
            )
        built.replace(path)
