"""fp16: halved, and converted back by the graph; arithmetic stays the runtime's."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from export.number_formats.number_format import StoredIr
from export.number_formats.onnx_graph import cast_matrices


def store_openvino(ir: Any) -> StoredIr:
    """Leave it to OpenVINO, which halves to float16 when it saves."""
    return StoredIr(ir, halve_on_save=True)


def store_onnx(model: Any, linears: Collection[str]) -> None:
    """Store every matrix as float16, and cast it back behind."""
    import numpy as np
    import onnx_ir

    cast_matrices(model, np.float16, onnx_ir.DataType.FLOAT16, suffix="fp16")


def round_products(ir: Any) -> Any:
    """Leave the products as they are: the whole graph computes in float16."""
    return ir
