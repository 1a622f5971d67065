"""Integers chosen beforehand put into an ONNX graph as MatMulNBits, so that any ONNX Runtime runs it."""

from __future__ import annotations

from collections.abc import Mapping
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
    """Replace MatMul(x, Transpose(W)) by products with integers and scales, in place.

    Args:
        model: an `onnx_ir.Model` with float weights.
        matrices: module path -> its weight.

    Raises:
        ModelUnsupported: the graph has no such product with one of the weights.
    """
    graph, missing = model.graph, dict(matrices)
    for node in list(graph):
        weight = _weight_of(node)
        matrix = None if weight is None else missing.get(module_path(weight.name))
        if weight is None or matrix is None:
            continue
        _replace(graph, node, weight, matrix)
        del missing[module_path(weight.name)]
    if missing:
        raise ModelUnsupported(
            f"the ONNX graph has no product with the weight of {next(iter(missing))}",
            where="--quantization",
            remedy="Use --quantization fast",
        )
    model.opset_imports[DOMAIN] = 1


def _weight_of(node: Any) -> Any | None:
    """W of MatMul(x, Transpose(W)), where nothing else reads either."""
    if node.op_type != "MatMul":
        return None
    transpose = node.inputs[1].producer()
    if transpose is None or transpose.op_type != "Transpose" or len(transpose.outputs[0].uses()) != 1:
        return None
    weight = transpose.inputs[0]
    return weight if weight.is_initializer() and len(weight.uses()) == 1 else None


def _replace(graph: Any, matmul: Any, weight: Any, matrix: Matrix) -> None:
    import onnx_ir
    from onnx_ir.convenience import replace_nodes_and_values

    rows, columns = matrix.values.shape
    blocks = _initializer(graph, f"{weight.name}_Q{BITS}", _to_blocks(matrix))
    scales = _initializer(graph, f"{weight.name}_scales", np.asarray(matrix.scales, np.float32))
    attributes = {
        "K": columns,
        "N": rows,
        "bits": BITS,
        "block_size": matrix.group_size,
        "accuracy_level": ACCURACY_LEVEL,
    }
    product = onnx_ir.node(
        "MatMulNBits", [matmul.inputs[0], blocks, scales], attributes, domain=DOMAIN, name=f"{matmul.name}_Q{BITS}"
    )
    transpose = matmul.inputs[1].producer()
    replace_nodes_and_values(graph, matmul, [matmul, transpose], [product], matmul.outputs, product.outputs)
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
