"""Integers chosen beforehand put into an ONNX graph as MatMulNBits, so that any ONNX Runtime runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from export.packing.linear_graph import module_path
from shearling.errors import ModelUnsupported
from shearling.kernel.packed_format import Matrix

BITS = 4
MIDPOINT = 2 ** (BITS - 1)
"""The unsigned number that MatMulNBits takes for zero."""
ACCURACY_LEVEL = 4
"""Activations in int8, as in all integer products of this project in ONNX."""
DOMAIN = "com.microsoft"


def place_in_graph(model: Any, matrices: Mapping[str, Matrix]) -> None:
    """Replace MatMul(x, Transpose(W)) by products with integers and scales, and Gather(W, tokens) by lookups in them,
    in place.

    Args:
        model: an `onnx_ir.Model` with float weights.
        matrices: module path -> its weight; one object under two paths is one weight of the graph.

    Raises:
        ModelUnsupported: the graph has no such product or lookup with one of the weights.
    """
    graph, missing = model.graph, dict(matrices)
    for weight in list(graph.initializers.values()):
        matrix = missing.get(module_path(weight.name))
        uses = None if matrix is None else _uses_of_rows(weight)
        if matrix is None or uses is None:
            continue
        _replace(graph, weight, matrix, uses)
        missing = {path: other for path, other in missing.items() if other is not matrix}
    if missing:
        raise ModelUnsupported(
            f"the ONNX graph has no product with the weight of {next(iter(missing))}",
            where="--quantization",
            remedy="Use --quantization fast",
        )
    model.opset_imports[DOMAIN] = 1


@dataclass(frozen=True)
class _Uses:
    """All that reads a weight.

    Attributes:
        products: each with the transposition before its weight.
        lookups: of rows.
    """

    products: tuple[tuple[Any, Any], ...]
    lookups: tuple[Any, ...]


def _uses_of_rows(weight: Any) -> _Uses | None:
    """None where something else reads the weight."""
    products, lookups = [], []
    for node, index in weight.uses():
        if (
            node.op_type == "Gather"
            and index == 0
            and ("axis" not in node.attributes or not node.attributes["axis"].value)
        ):
            lookups.append(node)
        elif node.op_type == "Transpose" and all(user.op_type == "MatMul" for user, _ in node.outputs[0].uses()):
            products += [(user, node) for user, _ in node.outputs[0].uses()]
        else:
            return None
    return _Uses(tuple(products), tuple(lookups)) if products or lookups else None


def _replace(graph: Any, weight: Any, matrix: Matrix, uses: _Uses) -> None:
    import onnx_ir
    from onnx_ir.convenience import replace_nodes_and_values

    rows, columns = matrix.values.shape
    blocks = _initializer(graph, f"{weight.name}_Q{BITS}", _to_blocks(matrix))
    scales = _initializer(graph, f"{weight.name}_scales", np.asarray(matrix.scales, np.float32))
    common = {"bits": BITS, "block_size": matrix.group_size}
    for matmul, transpose in uses.products:
        attributes = {**common, "K": columns, "N": rows, "accuracy_level": ACCURACY_LEVEL}
        inputs = [matmul.inputs[0], blocks, scales]
        product = onnx_ir.node("MatMulNBits", inputs, attributes, domain=DOMAIN, name=f"{matmul.name}_Q{BITS}")
        gone = [matmul, transpose] if len(transpose.outputs[0].uses()) == 1 else [matmul]
        replace_nodes_and_values(graph, matmul, gone, [product], matmul.outputs, product.outputs)
    for gather in uses.lookups:
        # A lookup has the bytes of a row side by side.
        shape = _initializer(graph, f"{weight.name}_shape", np.array([rows, columns * BITS // 8], np.int64))
        flat = onnx_ir.node("Reshape", [blocks, shape], name=f"{gather.name}_rows")
        attributes = {**common, "gather_axis": 0, "quantize_axis": 1}
        inputs = [flat.outputs[0], gather.inputs[1], scales]
        lookup = onnx_ir.node("GatherBlockQuantized", inputs, attributes, domain=DOMAIN, name=f"{gather.name}_Q{BITS}")
        replace_nodes_and_values(graph, gather, [gather], [flat, lookup], gather.outputs, lookup.outputs)
    del graph.initializers[weight.name]


def _to_blocks(matrix: Matrix) -> npt.NDArray[np.uint8]:
    """[out, groups, group / 2], the lower half of a byte first."""
    rows = len(matrix.values)
    unsigned = (matrix.values + MIDPOINT).astype(np.uint8).reshape(rows, -1, matrix.group_size)
    blocks: npt.NDArray[np.uint8] = unsigned[:, :, 0::2] | unsigned[:, :, 1::2] << 4
    return blocks


def _initializer(graph: Any, name: str, array: npt.NDArray[Any]) -> Any:
    import onnx_ir

    value = onnx_ir.Value(name=name, const_value=onnx_ir.tensor(array, name=name), shape=onnx_ir.Shape(array.shape))
    value.dtype = onnx_ir.DataType.from_numpy(array.dtype)
    graph.register_initializer(value)
    return value
