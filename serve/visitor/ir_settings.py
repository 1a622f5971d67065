"""Properties of OpenVINO for what a user asks for, and what a device answers; the same for all who measure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

# The CPU plugin computes in bf16 with an f16 cache and 8-bit activations unless told otherwise; the hint alone leaves
# the last two.
FP32 = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
BY_PRECISION: Mapping[str, Mapping[str, str]] = {
    "default": {},
    "fp32": FP32,
    "bf16": {"INFERENCE_PRECISION_HINT": "bf16"},
}
REPORTED = (
    "INFERENCE_NUM_THREADS",
    "KV_CACHE_PRECISION",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE",
    "EXECUTION_DEVICES",
    "PERFORMANCE_HINT",
)
OF_GENAI = frozenset({"ATTENTION_BACKEND", "PACKED"})
"""Properties of a pipeline, or of the loading of a packed model, that no device knows."""
PRECISIONS = {"f32": "fp32", "f16": "fp16"}
"""OpenVINO's names of number formats, where they are not ours."""
TYPE_NAMES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


def make_properties(
    precision: str,
    *,
    threads: int | None,
    hint: str | None,
    device: str,
    preferred: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """What OpenVINO is told.

    Args:
        precision: see `serve.runtimes.runtime.RunOptions`, also for the rest.
        threads: of the CPU.
        hint: of performance.
        device: of OpenVINO.
        preferred: instead of its own defaults, where `precision` is `default`.
    """
    properties = {**BY_PRECISION[precision], **((preferred or {}) if precision == "default" else {})}
    if threads is not None:
        properties["INFERENCE_NUM_THREADS"] = str(threads)
    if threads == 1:
        # Else it computes on the first CPU it saw, and gives the calling thread back all that it saw, whatever CPU the
        # process has been kept on since; see `serve.visitor.own_process.pin`.
        properties["ENABLE_CPU_PINNING"] = "NO"
    if hint is not None:
        properties["PERFORMANCE_HINT"] = hint.upper()
    if not device.startswith("CPU"):
        for name in ("DYNAMIC_QUANTIZATION_GROUP_SIZE", "INFERENCE_NUM_THREADS", "ENABLE_CPU_PINNING"):
            properties.pop(name, None)
    return properties


def one_operator(xml: Path) -> Any:
    """A model of one operator, with the options that a file states for its own compilation: a pipeline does not show
    its compiled model, and this one is asked what the device makes of them and of the properties.

    Args:
        xml: the file.
    """
    import numpy as np
    import openvino

    try:
        from openvino import opset8 as operators
    except ImportError:
        from openvino.runtime import opset8 as operators
    value = operators.parameter([1, 4], np.float32)
    model = openvino.Model([operators.relu(value)], [value], "probe")
    for name, stated in stated_options(xml).items():
        model.set_rt_info(stated, ["runtime_options", name])
    return model


def stated_options(xml: Path) -> dict[str, str]:
    """What an IR states for its own compilation, such as the precision of its cache."""
    begin, end = b"<runtime_options>", b"</runtime_options>"
    content = xml.read_bytes()
    # They stand behind megabytes of operators, which need not be parsed.
    start = content.rfind(begin)
    if start < 0:
        return {}
    options = ElementTree.fromstring(content[start : content.index(end, start) + len(end)])
    return {option.tag: option.attrib.get("value", "") for option in options}


def executed_precision(compiled: Any) -> str:
    """In what a compiled model computes, in our words; `unknown` where the device does not tell."""
    hint = "INFERENCE_PRECISION_HINT"
    name = property_name(compiled.get_property(hint)) if hint in supported(compiled) else "unknown"
    return PRECISIONS.get(name, name)


def reported_settings(compiled: Any) -> dict[str, str]:
    """What else decides speed, in the runtime's own words."""
    known = supported(compiled)
    return {name: property_name(compiled.get_property(name)) for name in REPORTED if name in known}


def supported(compiled: Any) -> set[str]:
    """Properties that a compiled model can be asked for."""
    return {str(name) for name in compiled.get_property("SUPPORTED_PROPERTIES")}


def property_name(value: Any) -> str:
    """A property's value as text."""
    if isinstance(value, (list, tuple)):
        return ",".join(property_name(item) for item in value)
    text = value.get_type_name() if hasattr(value, "get_type_name") else str(value)
    return TYPE_NAMES.get(text, text)
