"""The libraries of the package `shearling-runtime`, where it is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from shearling.errors import EnvironmentFault, PackageMissing
from shearling.kernel.compilation import ONNX_RUNTIME_LIBRARY, OPENVINO_LIBRARY

PACKAGE = "shearling_runtime"


def find_prebuilt(name: str, *, sources: str) -> Path | None:
    """A prebuilt library that can stand for a compiled one: made from the same sources, for the installed OpenVINO.

    Args:
        name: of its file.
        sources: digest of the sources here.

    Returns:
        None where there is no such library.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        return None
    from shearling_runtime.build_facts import read_build_facts
    from shearling_runtime.faults import RuntimeFault

    try:
        return _library(name) if read_build_facts().sources == sources else None
    except RuntimeFault:
        return None


def require_prebuilt(name: str) -> Path:
    """The prebuilt library, where there are no sources to compile.

    Args:
        name: of its file.

    Raises:
        PackageMissing: it is not installed.
        EnvironmentFault: it was made for another version of the runtime.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        raise PackageMissing(
            "the sparse kernels are not installed: the package shearling-runtime is missing",
            remedy="Install shearling_runtime-*.whl, which `make wheels` builds, or run from a checkout; the stock "
            "kernels need neither",
        )
    from shearling_runtime.faults import RuntimeFault

    try:
        return _library(name)
    except RuntimeFault as error:
        raise EnvironmentFault(error.message, remedy=error.remedy) from error


def _library(name: str) -> Path:
    from shearling_runtime import extension, operators

    return Path({OPENVINO_LIBRARY: extension, ONNX_RUNTIME_LIBRARY: operators}[name]())
