"""Is the device there? Asked before anything heavy is loaded, and of the runtime itself.

ONNX Runtime lists a provider that it was built with, and falls back to the CPU silently when it cannot start it; so the
question is put to a session of one operator.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import warnings
from pathlib import Path

from serve.runtimes.deployment import Format
from shearling.errors import DeviceUnavailable, PackageMissing
from shearling.kernel.openvino_core import openvino_core

PROVIDERS = {"CPU": "CPUExecutionProvider", "CUDA": "CUDAExecutionProvider", "TENSORRT": "TensorrtExecutionProvider"}
PACKAGES = {
    "openvino": ("openvino", "openvino_genai"),
    "onnx": ("onnxruntime",),
    "torch": ("torch", "transformers"),
    "gguf": ("llama_cpp",),
    "deepsparse": ("deepsparse",),
}
INSTALLED_AS = {
    "onnxruntime": "'shearling[cpu]'",
    "llama_cpp": "llama-cpp-python",
    "deepsparse": "deepsparse==1.8.0 numpy==1.26.4 onnx==1.14.1 'setuptools<81'",
}

INTEL_GPU = (
    "Install the Intel GPU driver (compute runtime; intel-opencl-icd on Debian and Ubuntu) and let "
    "this user into the group render, "
    "or use --device CPU"
)
CUDA_ORT = (
    "Needs an NVIDIA driver with CUDA 13 and cuDNN 9, and: pip uninstall onnxruntime && pip install 'shearling[gpu]' "
    "(the two packages exclude each other); or use --device CPU"
)
CUDA_TORCH = "Needs an NVIDIA driver and a CUDA build of PyTorch, or use --device CPU"


def check_device(model_format: Format, device: str, *, environment: Path | None = None) -> None:
    """Check that the runtime of a format can use a device on this machine.

    Args:
        model_format: decides the runtime.
        device: CPU, GPU, GPU.1, NPU (OpenVINO), CUDA (ONNX Runtime, PyTorch), TENSORRT (ONNX Runtime); upper case.
        environment: virtual environment with the runtime; None is the one that runs.

    Raises:
        PackageMissing: the runtime is not installed.
        DeviceUnavailable: says how to get the device.
    """
    for package in PACKAGES[model_format]:
        if environment is not None:
            _require_in(environment, package)
        elif importlib.util.find_spec(package) is None:
            name = INSTALLED_AS.get(package, package.replace("_", "-"))
            raise PackageMissing(f"the package {package} is not installed", remedy=f"pip install {name}")
    {
        "openvino": _check_openvino,
        "onnx": _check_onnx,
        "torch": _check_torch,
        "gguf": _check_visitor,
        "deepsparse": _check_visitor,
    }[model_format](device)


def interpreter_of(environment: Path) -> Path:
    """Python of a virtual environment."""
    return environment.absolute() / "bin" / "python"


def _require_in(environment: Path, package: str) -> None:
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
            remedy=f"{interpreter} -m pip install {INSTALLED_AS[package]}",
        )


def require_provider(active: list[str], device: str) -> None:
    """Check that a session runs where it was asked to.

    Args:
        active: `session.get_providers()`, the first one leads.
        device: a key of `PROVIDERS`.

    Raises:
        DeviceUnavailable: the provider was replaced silently.
    """
    wanted = PROVIDERS[device]
    if not active or active[0] != wanted:
        raise DeviceUnavailable(f"ONNX Runtime replaced {wanted} by {', '.join(active) or 'nothing'}", remedy=CUDA_ORT)


def _check_openvino(device: str) -> None:
    available = list(openvino_core().available_devices)
    if device in available or device in {name.partition(".")[0] for name in available}:
        return
    if device.startswith("CUDA"):
        raise DeviceUnavailable(
            "OpenVINO has no CUDA device", remedy="Use --format onnx or torch with --device CUDA, or --device CPU"
        )
    raise DeviceUnavailable(
        f"OpenVINO sees no {device} here, only {', '.join(available)}",
        remedy=INTEL_GPU if device.startswith("GPU") else "Use --device CPU",
    )


def _check_onnx(device: str) -> None:
    import onnxruntime

    if device == "CPU":
        return
    if device not in PROVIDERS:
        raise DeviceUnavailable(
            f"ONNX models run on {' or '.join(PROVIDERS)} here, not on {device}",
            remedy="Use one of these, or --format openvino",
        )
    if PROVIDERS[device] not in onnxruntime.get_available_providers():
        raise DeviceUnavailable(f"the installed ONNX Runtime has no {PROVIDERS[device]}", remedy=CUDA_ORT)
    with warnings.catch_warnings():
        # ORT only warns when it replaces a provider; require_provider turns that into an error.
        warnings.simplefilter("ignore")
        session = onnxruntime.InferenceSession(_one_operator(), providers=[PROVIDERS[device]])
    require_provider(session.get_providers(), device)


def _check_torch(device: str) -> None:
    if device == "CPU":
        return
    if device != "CUDA":
        raise DeviceUnavailable(
            f"PyTorch runs on CPU or CUDA here, not on {device}",
            remedy="Use --device CPU or CUDA, or --format openvino",
        )
    import torch

    if not torch.cuda.is_available():
        raise DeviceUnavailable("PyTorch sees no CUDA device", remedy=CUDA_TORCH)


def _check_visitor(device: str) -> None:
    if device != "CPU":
        raise DeviceUnavailable(
            f"llama.cpp and DeepSparse run on the CPU here, not on {device}", remedy="Use --device CPU"
        )


def _one_operator() -> bytes:
    import onnx
    from onnx import TensorProto, helper

    value, result = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "probe", [value], [result])
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return model.SerializeToString()
