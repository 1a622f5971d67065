"""Sparse models of Shearling in OpenVINO and ONNX Runtime: prebuilt operators, and nothing beside the runtime itself.

    import openvino_genai, shearling_runtime

    pipe = openvino_genai.LLMPipeline(
        directory, "CPU", extensions=[shearling_runtime.extension()], **shearling_runtime.preferred_properties()
    )

Importing this package loads no runtime; each function loads its own.
"""

from shearling_runtime.faults import ModelUnusable, RuntimeFault, RuntimeUnavailable
from shearling_runtime.onnx_runtime import operators, session_options
from shearling_runtime.openvino import extension, preferred_properties, register
from shearling_runtime.optimum import load_causal_lm

__all__ = [
    "ModelUnusable",
    "RuntimeFault",
    "RuntimeUnavailable",
    "extension",
    "load_causal_lm",
    "operators",
    "preferred_properties",
    "register",
    "session_options",
]
