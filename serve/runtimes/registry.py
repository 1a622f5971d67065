"""A deployment, loaded with the runtime of its format."""

from __future__ import annotations

from serve.runtimes.deployment import Deployment
from serve.runtimes.runtime import RunOptions, Runtime


def load_runtime(deployment: Deployment, options: RunOptions) -> Runtime:
    """Load a deployment with the runtime of its format; check the device with `serve.runtimes.device` before.

    Raises:
        ArtefactError: the runtime cannot read the files.
        DeviceUnavailable: the runtime took another device or precision than was asked for.
    """
    if deployment.format == "openvino":
        from serve.runtimes.openvino import OpenVINORuntime

        return OpenVINORuntime(deployment, options)
    if deployment.format == "onnx":
        from serve.runtimes.onnx import OnnxRuntime

        return OnnxRuntime(deployment, options)
    if deployment.format == "gguf":
        from serve.runtimes.llama_cpp import LlamaCppRuntime

        return LlamaCppRuntime(deployment, options)
    if deployment.format == "deepsparse":
        from serve.runtimes.deepsparse import DeepSparseRuntime

        return DeepSparseRuntime(deployment, options)
    from serve.runtimes.pytorch import TorchRuntime

    return TorchRuntime(deployment, options)
