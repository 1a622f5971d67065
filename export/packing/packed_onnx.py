"""An ONNX graph whose sparse weights are packed: `SparseLinear` of our own domain in place of the products that read
them.

    bf16          initializer -> Cast to float32 -> Transpose -> MatMul
    int8, int4    MatMulNBits of unsigned blocks, whose zero is 128 or 8, and of one float32 scale for each

are the forms that `export.number_formats` writes. Numbers and scales are packed as they are, without rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from export.packing.cost import PackingCost, measure_packing, saves, too_little
from export.packing.linear_graph import module_path
from export.packing.packing_report import PackedLayer, PackingReport
from shearling.kernel.library import pack_anywhere
from shearling.kernel.onnx_runtime_extension import DOMAIN, DOMAIN_VERSION, OPERATOR, node_attributes
from shearling.kernel.packed_format import Matrix, ValueType

PACKED = "_packed"
"""Behind the name of a weight, for the initializer that holds its packed form."""


@dataclass(frozen=True)
class OnnxProduct:
    """y = x Wᵀ with a weight that the graph decompresses.

    Attributes:
        weight: name of W as Hugging Face has it.
        matrix: W as it is stored.
        nodes: the product, then what stands before its weight and has no other reader.
        initializers: what these read and nothing else does.
        shared: the weight is read by other nodes too, such as an embedding.
    """

    weight: str
    matrix: Matrix
    nodes: tuple[Any, ...]
    initializers: tuple[Any, ...]
    shared: bool = False

    @property
    def path(self) -> str:
        """Of the module."""
        return module_path(self.weight)

    @property
    def shape(self) -> tuple[int, int]:
        """[out, in]."""
        rows, columns = self.matrix.values.shape
        return rows, columns

    @property
    def stored_bytes(self) -> int:
        """Bytes of the weight and its scales."""
        return sum(int(value.const_value.nbytes) for value in self.initializers)


def pack_graph(model: Any) -> PackingReport:
    """Replace the products that the cost rule of `export.packing.cost` chooses, in place.

    Args:
        model: an `onnx_ir.Model` with bf16, int8 or int4 weights.

    Returns:
        Every compressed weight, packed or kept, with its bytes before and after.
    """
    kept: dict[str, str] = {}
    layers: list[PackedLayer] = []
    for product in _find_products(model.graph):
        cost = measure_packing(product.matrix, product.stored_bytes)
        if product.shared:
            kept[product.path] = "read by other nodes too"
        elif not saves([cost]):
            kept[product.path] = too_little(cost, product.shape)
        else:
            layers.append(_replace(model.graph, product, cost))
    if layers:
        model.opset_imports[DOMAIN] = DOMAIN_VERSION
    return PackingReport(operators={OPERATOR: len(layers)} if layers else {}, layers=tuple(layers), kept=kept)


def _find_products(graph: Any) -> Iterator[OnnxProduct]:
    readers = {"MatMul": _halved_product, "MatMulNBits": _quantized_product}
    # One at a time: a product holds its numbers widened, and the graph changes while they are replaced.
    for node in [node for node in graph if node.op_type in readers]:
        product = readers[node.op_type](node)
        if product is not None:
            yield product


def _halved_product(matmul: Any) -> OnnxProduct | None:
    import onnx_ir

    transpose = matmul.inputs[1].producer()
    if transpose is None or transpose.op_type != "Transpose":
        return None
    cast = transpose.inputs[0].producer()
    if cast is None or cast.op_type != "Cast":
        return None
    stored = cast.inputs[0]
    if not stored.is_initializer() or stored.dtype != onnx_ir.DataType.BFLOAT16 or len(stored.shape) != 2:
        return None
    nodes = (matmul, transpose, cast)
    shared = any(len(value.uses()) != 1 for value in (stored, cast.outputs[0], transpose.outputs[0]))
    matrix = Matrix(np.ascontiguousarray(stored.const_value.numpy()).view(np.uint16), ValueType.BF16)
    return OnnxProduct(stored.name.removesuffix("_bf16"), matrix, nodes, (stored,), shared)


def _quantized_product(product: Any) -> OnnxProduct | None:
    # Zero points, an order of columns or a bias would follow.
    if any(value is not None for value in product.inputs[3:]):
        return None
    bits, columns, block_size = (product.attributes[name].value for name in ("bits", "K", "block_size"))
    blocks, scales = product.inputs[1:3]
    matrix = _read_blocks(
        blocks.const_value.numpy(), scales.const_value.numpy(), bits=bits, columns=columns, block_size=block_size
    )
    shared = any(len(value.uses()) != 1 for value in (blocks, scales))
    return OnnxProduct(blocks.name.removesuffix(f"_Q{bits}"), matrix, (product,), (blocks, scales), shared)


def _read_blocks(
    blocks: npt.NDArray[np.uint8], scales: npt.NDArray[np.float32], *, bits: int, columns: int, block_size: int
) -> Matrix:
    rows = len(blocks)
    unsigned = blocks.reshape(rows, -1)
    if bits == 4:
        unsigned = np.stack([unsigned & 15, unsigned >> 4], axis=-1).reshape(rows, -1)
    # The last block of a row is filled up beyond its columns.
    values = (unsigned[:, :columns].astype(np.int16) - 2 ** (bits - 1)).astype(np.int8)
    scales = scales.reshape(rows, -1)
    if np.array_equal(scales, np.broadcast_to(scales[:, :1], scales.shape)):
        # Integers of OpenVINO have one scale for a row, which MatMulNBits repeats for each block.
        scales, block_size = scales[:, :1], columns
    halved = scales.astype(np.float16)
    exact = np.array_equal(halved.astype(np.float32), scales)
    return Matrix(
        values,
        ValueType.INT8 if bits == 8 else ValueType.INT4,
        halved if exact else scales,
        min(block_size, columns),
    )


def _replace(graph: Any, product: OnnxProduct, cost: PackingCost) -> PackedLayer:
    import onnx_ir

    packed = pack_anywhere(product.matrix, cost.encoding)
    name = product.weight + PACKED
    stored = onnx_ir.Value(name=name, const_value=onnx_ir.tensor(packed, name=name), shape=onnx_ir.Shape(packed.shape))
    stored.dtype = onnx_ir.DataType.UINT8
    graph.register_initializer(stored)
    old = product.nodes[0]
    new = onnx_ir.node(OPERATOR, [old.inputs[0], stored], node_attributes(*product.shape), domain=DOMAIN, name=old.name)
    _put_in_place(graph, product.nodes, new)
    for value in product.initializers:
        del graph.initializers[value.name]
    return PackedLayer(
        path=product.path,
        operator=OPERATOR,
        node=old.name,
        weight_format=product.matrix.value_type.name.lower(),
        encoding=cost.encoding.name.lower(),
        shape=product.shape,
        zeros=product.matrix.values.size - cost.stored,
        bytes_before=cost.bytes_before,
        bytes_after=packed.nbytes,
    )


def _put_in_place(graph: Any, old: Sequence[Any], new: Any) -> None:
    from onnx_ir.convenience import replace_nodes_and_values

    replace_nodes_and_values(graph, old[0], old, [new], old[0].outputs, new.outputs)
