"""The crash of OpenVINO that is known, and what avoids it.

Where a processor has AMX, OpenVINO computes gate(x) * up(x) and the product behind it in one node (LLMMLP) if it may do
so in bf16. With a single thread that node divides by zero, and SIGFPE ends the process. docs/latency.md has a
reproduction, and what was tried.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .ir_text import IrText, MalformedText, Source

FIRST, LAST = (2024, 4), (2026, 4)
"""Releases in which it was seen; 2024.3 has no such node."""
HINT, EXECUTION_MODE = "INFERENCE_PRECISION_HINT", "EXECUTION_MODE_HINT"
THREADS, STREAMS, PERFORMANCE = "INFERENCE_NUM_THREADS", "NUM_STREAMS", "PERFORMANCE_HINT"
GROUP_SIZE = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
WHOLE_ROW = 2**63
"""Group sizes above it are of whole rows; with them int8 weights are in that node, too."""
WIDTH = 32
"""Divides the widths of what gets into it."""
FLOATS, BYTES = {"f32", "f16", "bf16"}, {"i8", "u8"}
AROUND_WEIGHTS = {"Convert", "Multiply", "Subtract", "Reshape"}
"""Between stored weights and a product."""
ACTIVATION = {"Swish", "Gelu", "Sigmoid", "Multiply", "Add", "Divide", "Power", "Tanh", "Erf", "Convert"}
"""What SiLU and GELU are written with."""
DEEPEST = 8
CPUINFO = Path("/proc/cpuinfo")
CORE = "/sys/devices/system/cpu/cpu{}/topology/core_cpus_list"
ISA_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""Environment variables that OpenVINO's products obey; the second is the older name of the first."""
AVOIDED = (
    "computed in float32 instead of bf16: OpenVINO dies on processors with AMX where a gated feed-forward block runs "
    "in bf16 with one thread; two threads keep bf16 (docs/latency.md)"
)
REFUSED = "OpenVINO dies here of SIGFPE: AMX, bf16, one thread, and a gated feed-forward block (docs/latency.md)"
REMEDY = "Use two threads, or float32"


class DiesInBf16(ValueError):
    """What was asked for by name would end the process."""


def survivable(
    graph: bytes | IrText, properties: Mapping[str, Any], *, device: str = "CPU", release: str
) -> dict[str, Any]:
    """The properties that a graph can be compiled with: float32, where its default precision would end the process.

    Args:
        graph: of an IR.
        properties: as they were asked for.
        device: of OpenVINO.
        release: of OpenVINO.

    Raises:
        DiesInBf16: they ask for bf16.
    """
    if not (is_affected(release) and dies_in_affected(graph, properties, device=device)):
        return dict(properties)
    if HINT in properties:
        raise DiesInBf16(REFUSED)
    return {**properties, HINT: "f32"}


def is_affected(release: str) -> bool:
    """Whether the crash is known of a release of OpenVINO."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return found is not None and FIRST <= (int(found[1]), int(found[2])) <= LAST


def dies_in_affected(graph: bytes | IrText, properties: Mapping[str, Any], *, device: str = "CPU") -> bool:
    """Whether an affected release would end the process; see `survivable`."""
    return (
        not device.startswith(("GPU", "NPU"))
        and _has_amx()
        and _may_be_bf16(properties)
        and _threads_of_a_stream(properties) <= 1
        and _has_gated_block(graph, FLOATS | (BYTES if _count(properties.get(GROUP_SIZE)) >= WHOLE_ROW else set()))
    )


def _may_be_bf16(properties: Mapping[str, Any]) -> bool:
    if HINT in properties:
        asked = properties[HINT]
        return str(asked.get_type_name() if hasattr(asked, "get_type_name") else asked) in ("bf16", "bfloat16")
    return _word(properties.get(EXECUTION_MODE)) != "ACCURACY"


def _threads_of_a_stream(properties: Mapping[str, Any]) -> int:
    """At least so many; how many streams there are is OpenVINO's choice if nobody says it."""
    threads = _count(properties.get(THREADS)) or _cores()
    if STREAMS in properties:
        return threads // (_count(properties[STREAMS]) or threads)
    return 1 if _word(properties.get(PERFORMANCE)).endswith("THROUGHPUT") else threads


def _word(value: Any) -> str:
    """A text, or OpenVINO's own type."""
    return str(getattr(value, "name", value)).upper()


def _count(value: Any) -> int:
    """0 for what is none, such as OpenVINO's words for its own choice."""
    try:
        return max(0, int(str(value)))
    except ValueError:
        return 0


def _cores() -> int:
    """That this process may use: OpenVINO may start one thread for two CPUs of one core."""
    found = set()
    for cpu in os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1):
        siblings = Path(CORE.format(cpu))
        found.add(siblings.read_text(encoding="ascii") if siblings.is_file() else str(cpu))
    return len(found)


def _has_amx() -> bool:
    limit = next((os.environ[name] for name in ISA_LIMITS if os.environ.get(name)), "ALL").upper()
    return _processor_has_amx() and ("AMX" in limit or limit in ("ALL", "DEFAULT"))


@functools.cache
def _processor_has_amx() -> bool:
    return CPUINFO.is_file() and b" amx_bf16" in CPUINFO.read_bytes()


def _has_gated_block(graph: bytes | IrText, kinds: set[str]) -> bool:
    try:
        text = graph if isinstance(graph, IrText) else IrText(graph)
        return any(_is_gated(text, number, kinds) for number in text.layers_of(["MatMul"]))
    except (MalformedText, IndexError):
        # OpenVINO says what is wrong with it.
        return False


def _is_gated(text: IrText, product: int, kinds: set[str]) -> bool:
    """Whether a product reads gate(x) * up(x) of two products that read the same; one that is split is not fused."""
    gated = text.inputs(product)[0].layer
    if text.kind(gated) != "Multiply" or not _has_weights(text, product, kinds):
        return False
    gates, ups = (
        {number for number in _products_behind(text, source) if _has_weights(text, number, kinds)}
        for source in text.inputs(gated)
    )
    return any(text.inputs(gate)[0] == text.inputs(up)[0] for gate in gates for up in ups - {gate})


def _products_behind(text: IrText, source: Source, depth: int = 0) -> Iterator[int]:
    """Products that an output is made of by nothing but what an activation is written with."""
    if text.kind(source.layer) == "MatMul":
        yield source.layer
    elif text.kind(source.layer) in ACTIVATION and depth < DEEPEST:
        for before in text.inputs(source.layer):
            yield from _products_behind(text, before, depth + 1)


def _has_weights(text: IrText, product: int, kinds: set[str]) -> bool:
    """Whether a product multiplies with stored numbers of these kinds, and of widths that fit."""
    number = text.inputs(product)[1].layer
    for _ in range(DEEPEST):
        if text.kind(number) in AROUND_WEIGHTS:
            number = text.inputs(number)[0].layer
    data = text.data(number)
    widths = [_count(side) for side in data.get("shape", "").split(",")]
    fit = len(widths) == 2 and all(width and width % WIDTH == 0 for width in widths)
    return text.kind(number) == "Const" and data.get("element_type") in kinds and fit
