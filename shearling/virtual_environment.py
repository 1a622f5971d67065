"""Runtimes that are installed apart: is the package of one there, and which Python runs it?"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from shearling.errors import PackageMissing
from shearling.registry.runtimes import RuntimeEntry

ANSWER_S = 60.0
"""In which a Python has to start, and say what it has."""
ARCHIVES = (".whl", ".zip", ".tar.gz")
"""What pip takes for a file, even if it is a bare name."""


def interpreter_of(environment: Path | None) -> Path:
    """Python of a virtual environment; None is the one that runs."""
    return Path(sys.executable) if environment is None else environment.absolute() / "bin" / "python"


def isolation(environment: Path | None) -> str:
    """The option that keeps the Python of an environment to what is its own; the one that runs has what its user gave
    it, too: packages that are installed for them alone, and PYTHONPATH.
    """
    return "-P" if environment is None else "-I"


def require_packages(entry: RuntimeEntry, environment: Path | None) -> None:
    """Check that what a runtime imports is installed.

    Args:
        entry: the runtime.
        environment: virtual environment with it; None is the one that runs.

    Raises:
        PackageMissing: it is not, or there is no environment of this version of Python.
    """
    for package, installed_as in entry.packages.items():
        if environment is not None:
            _require_in(environment, package, installed_as)
        elif importlib.util.find_spec(package) is None:
            elsewhere = ", or name an environment that has it: MODEL@environment=DIR" if entry.takes_environment else ""
            raise PackageMissing(
                f"the package {package} is not installed", remedy=f"pip install {installed_as}{elsewhere}"
            )


def installed_version(distribution: str, environment: Path | None) -> str | None:
    """Version of what pip installed in an environment; None where it is not there.

    Raises:
        PackageMissing: the Python of the environment does not answer.
    """
    if environment is None:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            return None
    question = f"import importlib.metadata; print(importlib.metadata.version({distribution!r}))"
    done = ask_python(environment, ["-I", "-c", question])
    return done.stdout.strip() if done.returncode == 0 else None


def ask_python(environment: Path | None, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """What the Python of a virtual environment says, and its exit code.

    Args:
        environment: None is the one that runs.
        arguments: of Python.

    Raises:
        PackageMissing: it says nothing for a minute, or cannot be started.
    """
    command = [str(interpreter_of(environment)), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=ANSWER_S)
    except subprocess.TimeoutExpired:
        reason = f"nothing was said for {ANSWER_S:g} s"
    except OSError as error:
        reason = str(error.strerror)
    raise PackageMissing(
        f"its Python does not answer: {reason}",
        where=environment or "this environment",
        remedy=f"See what this does: {command[0]} -c pass",
    )


def _has_pip() -> bool:
    # By its metadata: to look for the module starts what setuptools does to distutils.
    return next(iter(importlib.metadata.distributions(name="pip")), None) is not None


def from_anywhere(text: str) -> str:
    """A program or a requirement of pip, whose path is relative to where a command was given, made absolute, since an
    environment is made elsewhere. Names of programs and packages stay.
    """
    file, bracket, extras = text.rpartition("[") if not Path(text).exists() and text.endswith("]") else (text, "", "")
    is_path = os.sep in file or file.endswith(ARCHIVES)
    return f"{Path(file).absolute()}{bracket}{extras}" if is_path and Path(file).exists() else text


def make_environment(directory: Path, requirements: Sequence[str], *, python: Path | None = None) -> None:
    """A virtual environment in which pip has installed something; complete or absent.

    Args:
        directory: a new one, or one that holds nothing of an environment yet.
        requirements: as pip takes them, see `from_anywhere`.
        python: the interpreter that it is for, likewise; None is the one that runs.

    Raises:
        PackageMissing: it cannot be made, or pip cannot install what it shall hold.
    """
    directory = directory.absolute()
    # Nothing in an environment may be renamed, so it is removed where it is not finished.
    try:
        # Our own pip serves our own Python; any other gets one of its own, which takes seconds.
        shared = python is None and _has_pip()
        make = [str(python or sys.executable), "-m", "venv", *(["--without-pip"] if shared else []), str(directory)]
        _run(make, where=directory, what="make it")
        inside = str(interpreter_of(directory))
        pip = [sys.executable, "-m", "pip", "--python", inside] if shared else [inside, "-m", "pip"]
        install = [*pip, "install", "--quiet", "--disable-pip-version-check", *requirements]
        _run(install, where=directory, what=f"install {' '.join(requirements)}")
    except BaseException:
        remove_environment(directory)
        raise


def remove_environment(directory: Path) -> None:
    """Remove an environment, and last the files beside its directories: what tells whose it is stays as long as there
    is something of it, whenever this is interrupted.
    """
    for inside in [child for child in directory.glob("*") if child.is_dir() and not child.is_symlink()]:
        shutil.rmtree(inside, ignore_errors=True)
    shutil.rmtree(directory, ignore_errors=True)


def _run(command: Sequence[str], *, where: Path, what: str) -> None:
    # What lies on this path, or where a command is started from, pip takes for installed.
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    started_from = where if where.is_dir() else None
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables, cwd=started_from)
    except OSError as error:
        raise PackageMissing(f"cannot {what}: {error.strerror}: {command[0]}", where=where) from None
    if done.returncode:
        said = [line for line in (done.stderr or done.stdout).strip().splitlines() if line.strip()]
        errors = [line for line in said if line.startswith("ERROR: ")] or said or ["no message"]
        raise PackageMissing(
            f"cannot {what}: {errors[-1].removeprefix('ERROR: ')}",
            where=where,
            remedy="Check the versions, and the network",
        )


def _require_in(environment: Path, package: str, installed_as: str) -> None:
    interpreter = interpreter_of(environment)
    if not interpreter.is_file():
        raise PackageMissing(
            "no virtual environment here: it has no bin/python",
            where=environment,
            remedy=f"Make one: {sys.executable} -m venv",
        )
    question = (
        f"import importlib.util, sys; print(*sys.version_info[:2], importlib.util.find_spec({package!r}) is not None)"
    )
    answer = ask_python(environment, [isolation(environment), "-c", question]).stdout.split()
    own = [str(number) for number in sys.version_info[:2]]
    if answer[:2] != own:
        found = ".".join(answer[:2]) or "another version"
        raise PackageMissing(
            f"its Python is {found}, this one {'.'.join(own)}",
            where=environment,
            remedy=f"Make it with {sys.executable} -m venv",
        )
    if answer[2:] != ["True"]:
        raise PackageMissing(
            f"the package {package} is not installed there",
            where=environment,
            remedy=f"{interpreter} -m pip install {installed_as}",
        )
