"""The execution providers of ONNX Runtime: is one there, and does a session really run on it?"""

from __future__ import annotations

import warnings

from shearling.errors import DeviceUnavailable

PROVIDERS = {"CPU": "CPUExecutionProvider", "CUDA": "CUDAExecutionProvider", "TENSORRT": "TensorrtExecutionProvider"}
CUDA_REMEDY = (
    "Needs an NVIDIA driver with CUDA 13 and cuDNN 9, and: pip uninstall onnxruntime && "
    "pip install 'onnxruntime-gpu>=1.32,<1.33' "
    "(the two packages exclude each other); or use --device CPU"
)


def require_device(device: str) -> None:
    """Check that ONNX Runtime can start a session on a device.

    It lists a provider that it was built with, and falls back to the CPU silently when it cannot start it; so the
    question is put to a session of one operator.

    Raises:
        DeviceUnavailable: it cannot; says how to get the device.
    """
    import onnxruntime

    if device == "CPU":
        return
    if PROVIDERS[device] not in onnxruntime.get_available_providers():
        raise DeviceUnavailable(f"the installed ONNX Runtime has no {PROVIDERS[device]}", remedy=CUDA_REMEDY)
    with warnings.catch_warnings():
        # ORT only warns when it replaces a provider; require_provider turns that into an error.
        warnings.simplefilter("ignore")
        session = onnxruntime.InferenceSession(_one_operator(), providers=[PROVIDERS[device]])
    require_provider(session.get_providers(), device)


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
        raise DeviceUnavailable(
            f"ONNX Runtime replaced {wanted} by {', '.join(active) or 'nothing'}", remedy=CUDA_REMEDY
        )


def _one_operator() -> bytes:
    import onnx
    from onnx import TensorProto, helper

    value, result = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "probe", [value], [result])
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return model.SerializeToString()
