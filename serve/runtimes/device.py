"""Are the runtime and the device there? Asked before anything heavy is loaded."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

from shearling.errors import DeviceUnavailable, PackageMissing
from shearling.registry.registry import load_implementation
from shearling.registry.runtimes import RUNTIMES


def check_device(model_format: str, device: str, *, environment: Path | None = None) -> None:
    """Check that the runtime of a format can use a device on this machine.

    Args:
        model_format: a name of `RUNTIMES`.
        device: upper case; `GPU.1` is the second one.
        environment: virtual environment with the runtime; None is the one that runs.

    Raises:
        PackageMissing: the runtime is not installed.
        DeviceUnavailable: says how to get the device.
    """
    entry = RUNTIMES.get(model_format)
    for package, installed_as in entry.packages.items():
        if environment is not None:
            _require_in(environment, package, installed_as)
        elif importlib.util.find_spec(package) is None:
            raise PackageMissing(f"the package {package} is not installed", remedy=f"pip install {installed_as}")
    if not entry.has_device(device):
        others = [other.name for other in RUNTIMES if other.has_device(device)]
        raise DeviceUnavailable(
            f"{entry.title} runs on {' or '.join(entry.devices)} here, not on {device}",
            remedy=f"Use --device {entry.devices[0]}" + (f", or --format {' or '.join(others)}" if others else ""),
        )
    if entry.require_device is not None:
        load_implementation(entry.require_device)(device)


def interpreter_of(environment: Path) -> Path:
    """Python of a virtual environment."""
    return environment.absolute() / "bin" / "python"


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
