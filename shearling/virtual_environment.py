"""Runtimes that are installed apart: is the package of one there, and which Python runs it?"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

from shearling.errors import PackageMissing
from shearling.registry.runtimes import RuntimeEntry


def interpreter_of(environment: Path | None) -> Path:
    """Python of a virtual environment; None is the one that runs."""
    return Path(sys.executable) if environment is None else environment.absolute() / "bin" / "python"


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
            elsewhere = (
                ", or name an environment that has it: MODEL@environment=DIR" if entry.runs_in_own_environment else ""
            )
            raise PackageMissing(
                f"the package {package} is not installed", remedy=f"pip install {installed_as}{elsewhere}"
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
    answer = subprocess.run(
        [str(interpreter), "-c", question], capture_output=True, text=True, check=False, timeout=60
    ).stdout.split()
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
