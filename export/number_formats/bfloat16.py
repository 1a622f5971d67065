"""bf16: rounded to bfloat16, and converted back by the graph; arithmetic stays the runtime's."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from export.number_formats.number_format import StoredIr
from export.number_formats.onnx_graph import cast_matrices


def store_openvino(ir: Any) -> StoredIr:
    """Store every float32 weight matrix as bfloat16 followed by a conversion, in place.

    OpenVINO's own `save_model` halves to float16 only, which cannot hold what bfloat16 training may produce.
    """
    import numpy as np
    import openvino
    from openvino import opset13

    for node in ir.get_ordered_ops():
        if (
            node.get_type_name() != "Constant"
            or node.get_element_type() != openvino.Type.f32
            or sum(size > 1 for size in node.shape) < 2
        ):
            continue
        values = np.ascontiguousarray(node.data, dtype=np.float32).view(np.uint32)
        # To nearest, ties to even: add half of the last kept place, less one when that place is even already.
        rounded = ((values + 0x7FFF + ((values >> 16) & 1)) >> 16).astype(np.uint16)
        stored = openvino.op.Constant(
            openvino.Tensor(rounded, openvino.Shape(list(node.shape)), openvino.Type.bf16), shared_memory=False
        )
        stored.set_friendly_name(f"{node.get_friendly_name()}_compressed")
        restored = opset13.convert(stored, openvino.Type.f32)
        name = node.get_friendly_name()
        for target in node.output(0).get_target_inputs():
            target.replace_source_output(restored.output(0))
        restored.set_friendly_name(name)
    return StoredIr(ir)


def store_onnx(model: Any, linears: Collection[str]) -> None:
    """Store every matrix as bfloat16, and cast it back behind."""
    import ml_dtypes
    import onnx_ir

    cast_matrices(model, ml_dtypes.bfloat16, onnx_ir.DataType.BFLOAT16, suffix="bf16")
