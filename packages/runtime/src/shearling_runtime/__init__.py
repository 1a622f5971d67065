"""Sparse models of Shearling in OpenVINO and ONNX Runtime: prebuilt operators, and nothing beside the runtime itself.

    import shearling_runtime

    pipe = shearling_runtime.pipeline(directory)  # an openvino_genai.LLMPipeline

Importing this package loads no runtime; each function loads its own.
"""

from shearling_runtime.faults import ModelUnusable, RuntimeFault, RuntimeUnavailable
from shearling_runtime.onnx_genai import load_genai_model
from shearling_runtime.onnx_runtime import operators, session_options
from shearling_runtime.openvino import extension, preferred_properties, register
from shearling_runtime.optimum import load_causal_lm
from shearling_runtime.pipeline import pipeline, write_fused

__all__ = [
    "ModelUnusable",
    "RuntimeFault",
    "RuntimeUnavailable",
    "extension",
    "load_causal_lm",
    "load_genai_model",
    "operators",
    "pipeline",
    "preferred_properties",
    "register",
    "session_options",
    "write_fused",
]
