"""What the compiled libraries are made of, and how the compiler makes them. Knows nothing but the standard library, so
that the build of the wheel `shearling-runtime` (packages/runtime/setup.py) uses it as it is.

Both libraries hold the kernels, which are compiled once for both. One has their C interface and the operators for
OpenVINO: it links against the `openvino` that is installed and takes its headers and its thread pool from that wheel,
so nothing beside a compiler is needed. The other has the operator for ONNX Runtime: it needs the headers of its C
interface, which no wheel brings, and links against nothing.

The compiler is g++ 11 or newer. Every unit chooses its instruction set by `#pragma GCC target`, which clang++ does not
read, so that one library serves all processors; 10 was the first version to know `avx512bf16`, 11 the first with
`amx-tile`. It must also use the C++ library that the wheel was built with (libstdc++), which rules out `zig c++`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from shearling.errors import CompilerMissing, EnvironmentFault, PackageMissing

SOURCES = Path(__file__).with_name("cpp")
SOURCES_CALLED = "shearling/kernel/cpp"
"""What the libraries call their sources in messages, so that they are the same wherever a checkout lies."""
COMPILER = "g++"
LEAST_COMPILER_VERSION = 11
NEEDED = f"g++ {LEAST_COMPILER_VERSION} or newer, the first that knows AMX"
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi")
TIMEOUT_S = 600.0
POLL_S = 0.02
QUESTION_TIMEOUT_S = 60.0
"""For what a compiler says of itself."""
KERNELS = "kernels.o"
OPENVINO_LIBRARY = "libshearling_openvino.so"
ONNX_RUNTIME_LIBRARY = "libshearling_onnxruntime.so"
OPENVINO_UNITS = (
    "library.cpp",
    "openvino_constants.cpp",
    "openvino_decoder_operators.cpp",
    "openvino_operators.cpp",
    "tbb_threads.cpp",
)
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
        units: that it has beside the kernels.
        headers: of the runtime, for the compiler.
        libraries: of the runtime, for the linker.
        identity: what these are.
    """

    name: str
    units: tuple[str, ...]
    headers: tuple[str, ...]
    libraries: tuple[str, ...]
    identity: str


def openvino_plan(*, search_path: str | None = None) -> LibraryPlan:
    """The library for OpenVINO and for Python.

    Args:
        search_path: where the library looks for OpenVINO's when it is loaded before them; None is where they are now.

    Raises:
        PackageMissing: openvino is not installed.
        EnvironmentFault: this openvino cannot be linked against.
    """
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
    include, found_in = openvino / "include", search_path or openvino / "libs"
    return LibraryPlan(
        name=OPENVINO_LIBRARY,
        units=OPENVINO_UNITS,
        headers=("-isystem", str(include), f"-ffile-prefix-map={include}=openvino"),
        libraries=(*map(str, libraries), f"-Wl,-rpath,{found_in}"),
        identity=f"{importlib.metadata.version('openvino')} {openvino}",
    )


def openvino_release() -> str:
    """The installed OpenVINO, such as 2026.4.1; the name of its library says it too, so that no other one fits."""
    return ".".join(importlib.metadata.version("openvino").split(".")[:3])


def onnx_runtime_plan() -> LibraryPlan:
    """The library for ONNX Runtime.

    Raises:
        PackageMissing: its headers are not installed.
    """
    include = find_headers()
    return LibraryPlan(
        name=ONNX_RUNTIME_LIBRARY,
        units=ONNX_RUNTIME_UNITS,
        # Not -isystem, which puts /usr/include before the headers of C++ that must precede it.
        headers=("-I", str(include)),
        libraries=(),
        identity=f"{hashlib.sha256((include / HEADER).read_bytes()).hexdigest()} {include}",
    )


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
        CompilerMissing: there is none, or `CXX` is no command.
    """
    named = os.environ.get("CXX", "")
    try:
        command = shlex.split(named) or [COMPILER]
    except ValueError as error:
        raise CompilerMissing(
            f"CXX is no command: {error}: {named}", remedy="Close its quotation marks, or leave it out"
        ) from error
    if not shutil.which(command[0]):
        raise CompilerMissing(
            f"the sparse kernels need {NEEDED}: {command[0]} was not found",
            remedy="Install it (on Debian: apt install g++), or name it in CXX; the stock kernels need none",
        )
    return command


def require_gcc(compiler: Sequence[str]) -> None:
    """Check that a compiler can compile the sources, before it fails at their first intrinsic.

    Raises:
        CompilerMissing: it is another one than g++, or too old.
    """
    answer = _ask_compiler([*compiler, "-dM", "-E", "-x", "c++", "/dev/null"])
    macros = dict(re.findall(r"^#define (__clang__|__GNUC__) (\d+)", answer.stdout, re.MULTILINE))
    if answer.returncode != 0 or "__GNUC__" not in macros:
        reason = "it could not compile an empty file"
    elif "__clang__" in macros:
        reason = "it is a clang, which does not read #pragma GCC target"
    elif int(macros["__GNUC__"]) < LEAST_COMPILER_VERSION:
        reason = f"it is version {macros['__GNUC__']}"
    else:
        return
    raise CompilerMissing(
        f"{compiler[0]} could not compile the sparse kernels: {reason}",
        remedy=f"They need {NEEDED}; CXX names another compiler",
    )


def compiler_version(compiler: Sequence[str]) -> str:
    """What a compiler says of itself.

    Raises:
        CompilerMissing: it says nothing for a minute.
    """
    return _ask_compiler([*compiler, "--version"]).stdout


def kernel_files(sources: Path) -> list[Path]:
    """What the kernels are compiled from, sorted by name."""
    return source_files(sources, left_out=(*OPENVINO_UNITS, *ONNX_RUNTIME_UNITS))


def library_files(sources: Path, plan: LibraryPlan) -> list[Path]:
    """What a library is compiled from, sorted by name."""
    others = {*OPENVINO_UNITS, *ONNX_RUNTIME_UNITS}.difference(plan.units)
    return source_files(sources, left_out=tuple(others))


def source_files(sources: Path, *, left_out: Sequence[str] = ()) -> list[Path]:
    """What both libraries are compiled from, sorted by name."""
    return sorted(
        file for file in sources.iterdir() if file.suffix in {".cpp", ".hpp", ".inc"} and file.name not in left_out
    )


def digest_of(files: Sequence[Path]) -> str:
    """SHA-256 over names and contents, hexadecimal."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def compile_kernels(path: Path, *, compiler: Sequence[str], sources: Path = SOURCES) -> None:
    """Compile what both libraries hold into one object.

    Args:
        path: the object; complete afterwards, or absent.
        compiler: see `find_compiler`.
        sources: directory with the C++.

    Raises:
        CompilerMissing: the compiler cannot be used, fails, or does not come to an end.
    """
    require_gcc(compiler)
    units = [file for file in kernel_files(sources) if file.suffix == ".cpp"]
    _compile(path, units, ["-r", "-nostdlib"], compiler=compiler, sources=sources)


def compile_library(
    path: Path,
    *,
    plan: LibraryPlan,
    kernels: Path,
    compiler: Sequence[str],
    sources: Path = SOURCES,
    options: Sequence[str] = (),
) -> None:
    """Compile the rest of a library.

    Args:
        path: the library; complete afterwards, or absent.
        plan: what it is made of.
        kernels: of `compile_kernels`.
        compiler: see `find_compiler`.
        sources: directory with the C++.
        options: more for the linker.

    Raises:
        CompilerMissing: the compiler cannot be used, fails, or does not come to an end.
    """
    require_gcc(compiler)
    units = [sources / name for name in plan.units]
    linking = ["-shared", *options, str(kernels), *plan.libraries]
    _compile(path, units, linking, compiler=compiler, sources=sources, headers=plan.headers)


def _compile(
    path: Path,
    units: Sequence[Path],
    linking: Sequence[str],
    *,
    compiler: Sequence[str],
    sources: Path,
    headers: Sequence[str] = (),
) -> None:
    until_s = time.monotonic() + TIMEOUT_S
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".build-") as temporary:
        directory = Path(temporary)
        renamed = f"-ffile-prefix-map={sources}={SOURCES_CALLED}"
        objects = [str(directory / f"{unit.stem}.o") for unit in units]
        common = [*compiler, *FLAGS, renamed, *headers]
        commands = [[*common, "-c", str(unit), "-o", compiled] for unit, compiled in zip(units, objects, strict=True)]
        _run_side_by_side(commands, until_s=until_s)
        built = directory / path.name
        _run_side_by_side([[*compiler, "-o", str(built), *objects, *linking]], until_s=until_s)
        built.replace(path)


def _run_side_by_side(commands: Sequence[Sequence[str]], *, until_s: float) -> None:
    """Run compilers, as many at once as there are processors, until all have ended or one has failed."""
    waiting, running = list(reversed(commands)), list[tuple[subprocess.Popen[str], IO[str]]]()
    with ExitStack() as stack:
        while waiting or running:
            while waiting and len(running) < len(os.sched_getaffinity(0)):
                said = stack.enter_context(tempfile.TemporaryFile("w+", errors="replace"))
                running.append((stack.enter_context(_started(waiting.pop(), said)), said))
            for process, errors in [pair for pair in running if pair[0].poll() is not None]:
                running.remove((process, errors))
                if process.returncode != 0:
                    raise _failed(commands[0][0], errors)
            if running and time.monotonic() > until_s:
                raise _stopped(commands[0][0], TIMEOUT_S)
            time.sleep(POLL_S)


@contextmanager
def _started(command: Sequence[str], errors: IO[str] | int) -> Iterator[subprocess.Popen[str]]:
    """A compiler in a session of its own, so that what it has started ends with it: with this context."""
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE if errors == subprocess.PIPE else subprocess.DEVNULL,
        stderr=errors,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def _failed(compiler: str, errors: IO[str]) -> CompilerMissing:
    errors.seek(0)
    lines = errors.read().splitlines()
    reason = next((line for line in lines if "error" in line), lines[0] if lines else "no output")
    return CompilerMissing(
        f"{compiler} could not compile the sparse kernels: {reason.strip()}",
        remedy=f"They need {NEEDED}; CXX names another compiler",
    )


def _stopped(compiler: str, timeout_s: float) -> CompilerMissing:
    return CompilerMissing(
        f"{compiler} was stopped after {timeout_s:g} s without coming to an end",
        remedy="Try again on a less busy machine, or name another compiler in CXX",
    )


def _ask_compiler(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    with _started(command, subprocess.PIPE) as process:
        try:
            output, errors = process.communicate(timeout=QUESTION_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise _stopped(command[0], QUESTION_TIMEOUT_S) from None
    return subprocess.CompletedProcess(list(command), process.returncode, output, errors)
