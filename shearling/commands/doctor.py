"""What this installation can do: where the stages come from, versions, devices, native arithmetic, sparse kernels."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Callable
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from rich.table import Table

from shearling.artefact import package_versions
from shearling.command_line import STAGES, Result, stage_roots
from shearling.errors import ShearlingError
from shearling.kernel.loading.packed_choice import TOLERANCE
from shearling.kernel.openvino_core import openvino_core

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "nncf",
    "optimum",
    "optimum-intel",
    "openvino",
    "openvino-genai",
    "openvino-tokenizers",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-genai",
    "lm-eval",
    "pymoo",
)
EQUAL_VERSIONS = ("openvino", "openvino-genai", "openvino-tokenizers")


def examine() -> Result:
    """Look at everything, and compile the sparse kernels where that was not done yet; a part that is missing is a
    finding, not an error.
    """
    data: dict[str, Any] = {
        "stages": {stage: None if root is None else str(root) for stage, root in stage_roots().items()},
        "python": platform.python_version(),
        "versions": _versions(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        **_torch_facts(),
        "openvino_devices": _openvino_devices(),
        "onnxruntime_providers": _onnxruntime_providers(),
        "sparse_kernels": _sparse_kernels(),
    }
    data["findings"] = _findings(data)
    return Result(data, _screen(data))


def _versions() -> dict[str, str | None]:
    found = package_versions(PACKAGES)
    return {name: found.get(name) for name in PACKAGES}


def _torch_facts() -> dict[str, Any]:
    try:
        import torch
    except ImportError:
        return {"cuda": False, "native_bf16": None}
    from shearling.evaluation.precision import resolve_precision

    return {"cuda": torch.cuda.is_available(), "native_bf16": resolve_precision("auto") == "bf16"}


def _openvino_devices() -> list[str]:
    try:
        return list(openvino_core().available_devices)
    except ImportError:
        return []


def _onnxruntime_providers() -> list[str]:
    try:
        import onnxruntime
    except ImportError:
        return []
    return list(onnxruntime.get_available_providers())


def _sparse_kernels() -> dict[str, dict[str, Any]]:
    """Of either runtime: what the compiled operators use, or why there are none; of OpenVINO's how long a product
    takes, relative to its own.
    """
    from shearling.kernel.build import build_onnx_runtime_library
    from shearling.kernel.library import kernels_in_use

    def of_onnx_runtime() -> str:
        ctypes.CDLL(str(build_onnx_runtime_library()))
        try:
            # The same, told by the library that is for OpenVINO as well.
            return kernels_in_use()
        except ShearlingError:
            return "compiled"

    def attempt(kernels: Callable[[], str]) -> dict[str, Any]:
        try:
            return {"kernels": kernels(), "missing": None}
        # OSError: a library that was built and cannot be loaded.
        except (ShearlingError, OSError) as error:
            return {"kernels": None, "missing": str(error)}

    found = {"openvino": attempt(kernels_in_use), "onnxruntime": attempt(of_onnx_runtime)}
    found["openvino"]["relative_time"] = None if found["openvino"]["missing"] else _relative_time()
    return found


def _relative_time() -> float | None:
    from shearling.kernel.packed_speed import measure_packed_product

    try:
        timing = measure_packed_product()
    # RuntimeError: OpenVINO does not run it, which a model will say.
    except (ShearlingError, RuntimeError):
        return None
    own_s = timing.dense_s if timing.stock_s is None else min(timing.dense_s, timing.stock_s)
    return round(timing.packed_s / own_s, 3)


def _findings(data: dict[str, Any]) -> list[str]:
    versions = data["versions"]
    own = str(Path(__file__).resolve().parents[2])
    found = [
        f"the stage '{stage}' is not importable: run from {own}"
        for stage, root in data["stages"].items()
        if root is None
    ]
    found += [
        f"`python -m {stage}` runs what {Path.cwd()} calls so: use `shearling-{stage}`, or `python -P -m {stage}`"
        for stage in _shadowed_here(own)
    ]
    found += [
        f"not installed: {name}" for name in PACKAGES if versions[name] is None and not name.startswith("onnxruntime")
    ]
    runtimes = [name for name in ("onnxruntime", "onnxruntime-gpu") if versions[name]]
    if len(runtimes) == 2:
        found.append(
            "onnxruntime and onnxruntime-gpu share one directory and break each other: uninstall both, then install one"
        )
    if not runtimes:
        found.append("no ONNX Runtime: pip install 'onnxruntime>=1.32,<1.33', or onnxruntime-gpu")
    releases = {".".join(versions[name].split(".")[:3]) for name in EQUAL_VERSIONS if versions[name]}
    if len(releases) > 1:
        found.append(f"{', '.join(EQUAL_VERSIONS)} must have equal versions, found {', '.join(sorted(releases))}")
    # ONNX Runtime's need headers that no wheel brings, so they are an offer.
    if missing := data["sparse_kernels"]["openvino"]["missing"]:
        found.append(missing)
    return found


def _shadowed_here(own: str) -> list[str]:
    """Stages that `python -m` would not run: it takes what stands in the working directory before what is installed."""
    here = str(Path.cwd())
    if here == own:
        return []
    specs = {stage: PathFinder.find_spec(stage, [here]) for stage in STAGES}
    # A directory that is no package has no loader, and gives way to one that is.
    return [stage for stage, spec in specs.items() if spec is not None and spec.loader is not None]


def _told_speed(ratio: float) -> str:
    took = f"half zeros: {ratio:.2f} times as long as OpenVINO's own"
    return took if ratio <= TOLERANCE else f"{took}; a model is loaded with its zeros where that is faster"


def _screen(data: dict[str, Any]) -> Table:
    table = Table(
        title=f"Python {data['python']} ({sys.executable}), {data['cpus']} CPUs",
        title_justify="left",
        show_header=False,
    )
    table.add_column("what", no_wrap=True)
    table.add_column("found", overflow="fold")
    for stage, root in data["stages"].items():
        table.add_row(f"stage {stage}", root or "not importable")
    table.add_section()
    for name, version in data["versions"].items():
        table.add_row(name, version or "not installed")
    table.add_section()
    bf16 = {
        True: "yes: auto precision trains and evaluates in bf16",
        False: "no: auto precision is float32",
        None: "unknown, torch is missing",
    }
    table.add_row("native bf16", bf16[data["native_bf16"]])
    table.add_row("CUDA", "yes" if data["cuda"] else "no")
    table.add_row("OpenVINO devices", ", ".join(data["openvino_devices"]) or "none")
    table.add_row("ONNX Runtime providers", ", ".join(data["onnxruntime_providers"]) or "none")
    for name, runtime in (("openvino", "OpenVINO"), ("onnxruntime", "ONNX Runtime")):
        state = data["sparse_kernels"][name]
        table.add_row(f"sparse kernels, {runtime}", state["kernels"] or state["missing"])
    if (ratio := data["sparse_kernels"]["openvino"]["relative_time"]) is not None:
        table.add_row("a packed int8 product", _told_speed(ratio))
    table.add_section()
    for finding in data["findings"] or ["nothing to repair"]:
        table.add_row("finding", finding)
    return table
