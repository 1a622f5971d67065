"""Integers chosen beforehand put into an ONNX graph as MatMulNBits, so that any ONNX Runtime runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from export.packing.linear_graph import module_path
from shearling.errors import ModelUnsupported
from shearling.kernel.packed_format import Matrix, ValueType

LARGEST_BLOCK = 128
"""Columns of a block where a row has one scale."""
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
        if node.op_type == "Gather" and index == 0 and node.attributes.get_int("axis", 0) == 0:
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
    stored = _to_blocks(matrix)
    suffix = f"Q{stored.bits}"
    blocks = _initializer(graph, f"{weight.name}_{suffix}", stored.blocks)
    scales = _initializer(graph, f"{weight.name}_scales", stored.scales)
    common = {"bits": stored.bits, "block_size": stored.block_size}
    for matmul, transpose in uses.products:
        attributes = {**common, "K": columns, "N": rows, "accuracy_level": ACCURACY_LEVEL}
        inputs = [matmul.inputs[0], blocks, scales]
        product = onnx_ir.node("MatMulNBits", inputs, attributes, domain=DOMAIN, name=f"{matmul.name}_{suffix}")
        gone = [matmul, transpose] if len(transpose.outputs[0].uses()) == 1 else [matmul]
        replace_nodes_and_values(graph, matmul, gone, [product], matmul.outputs, product.outputs)
    for gather in uses.lookups:
        # A lookup has the bytes of a row side by side.
        shape = _initializer(graph, f"{weight.name}_shape", np.array([rows, -1], np.int64))
        flat = onnx_ir.node("Reshape", [blocks, shape], name=f"{gather.name}_rows")
        attributes = {**common, "gather_axis": 0, "quantize_axis": 1}
        inputs = [flat.outputs[0], gather.inputs[1], scales]
        lookup = onnx_ir.node("GatherBlockQuantized", inputs, attributes, domain=DOMAIN, name=f"{gather.name}_{suffix}")
        nodes = [flat, lookup, *_cut_to(columns, graph, lookup, weight.name, filled=stored.columns)]
        replace_nodes_and_values(graph, gather, [gather], nodes, gather.outputs, nodes[-1].outputs)
    del graph.initializers[weight.name]


def _cut_to(columns: int, graph: Any, lookup: Any, weight: str, *, filled: int) -> list[Any]:
    """What takes the columns off that fill up the last block of a looked-up row; nothing where there are none."""
    import onnx_ir

    if filled == columns:
        return []
    bounds = {"start": 0, "end": columns, "axis": -1}
    inputs = [_initializer(graph, f"{weight}_{name}", np.array([at], np.int64)) for name, at in bounds.items()]
    return [onnx_ir.node("Slice", [lookup.outputs[0], *inputs], name=f"{lookup.name}_cut")]


@dataclass(frozen=True)
class _Blocks:
    """A matrix as MatMulNBits stores it.

    Attributes:
        blocks: [out, blocks, bytes] of unsigned numbers, of four bits the lower half of a byte first.
        scales: [out, blocks] float32.
    """

    bits: int
    block_size: int
    blocks: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.float32]

    @property
    def columns(self) -> int:
        """Of all blocks of a row, filled up."""
        return int(self.scales.shape[1]) * self.block_size


def _to_blocks(matrix: Matrix) -> _Blocks:
    bits = 4 if matrix.value_type is ValueType.INT4 else 8
    rows, columns = matrix.values.shape
    size = matrix.group_size if bits == 4 else LARGEST_BLOCK
    # What it takes for zero lies in the middle; the last block of a row is filled up with it.
    unsigned = (matrix.values.astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
    padded = np.pad(unsigned, ((0, 0), (0, -columns % size)), constant_values=2 ** (bits - 1))
    blocks = padded.reshape(rows, -1, size)
    if bits == 4:
        blocks = blocks[:, :, 0::2] | blocks[:, :, 1::2] << 4
    scales = np.asarray(matrix.scales, np.float32)
    if bits == 8:
        scales = np.repeat(scales, blocks.shape[1], axis=1)
    return _Blocks(bits, size, blocks, scales)


def _initializer(graph: Any, name: str, array: npt.NDArray[Any]) -> Any:
    import onnx_ir

    value = onnx_ir.Value(name=name, const_value=onnx_ir.tensor(array, name=name), shape=onnx_ir.Shape(array.shape))
    value.dtype = onnx_ir.DataType.from_numpy(array.dtype)
    graph.register_initializer(value)
    return value
