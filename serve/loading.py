"""A deployment, loaded with the runtime of its format."""

from __future__ import annotations

from serve.deployment import Deployment
from serve.runtime import RunOptions, Runtime


def load_runtime(deployment: Deployment, options: RunOptions) -> Runtime:
    """Load a deployment with the runtime of its format; check the device with `serve.device` before.

    Raises:
        ArtefactError: the runtime cannot read the files.
        DeviceUnavailable: the runtime took another device or precision than was asked for.
    """
    if deployment.format == "openvino":
        from serve.openvino_runtime import OpenVINORuntime

        return OpenVINORuntime(deployment, options)
    if deployment.format == "onnx":
        from serve.onnx_runtime import OnnxRuntime

        return OnnxRuntime(deployment, options)
    if deployment.format == "gguf":
        from serve.llama_cpp_runtime import LlamaCppRuntime

        return LlamaCppRuntime(deployment, options)
    if deployment.format == "deepsparse":
        from serve.deepsparse_runtime import DeepSparseRuntime

        return DeepSparseRuntime(deployment, options)
    from serve.torch_runtime import TorchRuntime

    return TorchRuntime(deployment, options)
