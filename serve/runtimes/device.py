"""Are the runtime and the device there? Asked before anything heavy is loaded."""

from __future__ import annotations

from pathlib import Path

from shearling.errors import DeviceUnavailable
from shearling.registry.registry import load_implementation
from shearling.registry.runtimes import RUNTIMES
from shearling.virtual_environment import require_packages


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
    require_packages(entry, environment)
    if not entry.has_device(device):
        others = [other.name for other in RUNTIMES if other.has_device(device)]
        raise DeviceUnavailable(
            f"{entry.title} runs on {' or '.join(entry.devices)} here, not on {device}",
            remedy=f"Use --device {entry.devices[0]}" + (f", or --format {' or '.join(others)}" if others else ""),
        )
    if entry.require_device is not None:
        load_implementation(entry.require_device)(device)
