"""The numbers of a compressed weight constant, read and written without rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from export.packing.linear_graph import Product
from shearling.errors import ArtefactCorrupt
from shearling.kernel.packed_format import Matrix, ValueType


def read_matrix(product: Product) -> Matrix:
    """Weights and scales as they are stored.

    Args:
        product: with a bf16, int8 or int4 weight.
    """
    values = read_values(product.constant).reshape(product.shape)
    if product.scale is None:
        return Matrix(values, ValueType.BF16)
    scales = np.array(product.scale.data).reshape(product.shape[0], -1)
    return Matrix(values, ValueType[product.storage.upper()], scales, product.shape[1] // scales.shape[1])


def read_values(constant: Any) -> npt.NDArray[Any]:
    """Stored numbers of a constant in its shape: bf16 as its bits in uint16, i8 as int8, i4 widened to int8."""
    import openvino

    kind = constant.get_element_type()
    if kind == openvino.Type.i4:
        raw = np.frombuffer(constant.data.tobytes(), dtype=np.uint8)
        nibbles = np.stack([raw & 15, raw >> 4], axis=-1).reshape(-1)[: int(np.prod(constant.shape))]
        # Two's complement of four bits: flip the sign bit, then take its weight off.
        return ((nibbles ^ 8).astype(np.int8) - 8).reshape(list(constant.shape))
    if kind == openvino.Type.bf16:
        return np.array(constant.data).view(np.uint16)
    return np.array(constant.data)


def make_constant(values: npt.NDArray[Any], kind: Any) -> Any:
    """The inverse of `read_values`.

    Args:
        values: in the shape of the constant.
        kind: `openvino.Type` bf16, i8 or i4.
    """
    import openvino

    shape = openvino.Shape(list(values.shape))
    if kind == openvino.Type.i4:
        nibbles = np.pad(values.reshape(-1).view(np.uint8) & 15, (0, values.size % 2))
        values = nibbles[0::2] | nibbles[1::2] << 4
    return openvino.op.Constant(openvino.Tensor(np.ascontiguousarray(values), shape, kind), shared_memory=False)


def stored_bytes(product: Product) -> int:
    """Bytes of a weight and its scales in the IR."""
    scales = 0 if product.scale is None else int(product.scale.data.nbytes)
    return int(product.constant.data.nbytes) + scales


def decompressed(path: str, matrix: Matrix) -> Any:
    """Nodes that make a weight of its stored numbers, in the form that NNCF writes; gives their output, [out, in] f32.

    Args:
        path: name of the constant.
        matrix: what is stored.

    Raises:
        ArtefactCorrupt: integers without scales.
    """
    import openvino
    from openvino import opset13

    if matrix.value_type is ValueType.BF16:
        return _restored(
            make_constant(matrix.values, openvino.Type.bf16), path, openvino.Type.f32, path.removesuffix("_compressed")
        )
    if matrix.scales is None:
        raise ArtefactCorrupt("packed integers without scales", where=path)
    rows, groups = matrix.scales.shape
    grouped = matrix.value_type is ValueType.INT4
    shape = (rows, groups, -1) if grouped else matrix.values.shape
    stored = make_constant(matrix.values.reshape(shape), openvino.Type.i4 if grouped else openvino.Type.i8)
    scale = openvino.op.Constant(
        np.ascontiguousarray(matrix.scales.reshape((rows, groups, 1) if grouped else (rows, 1)))
    )
    scale.set_friendly_name(f"{path}/scale")
    half = matrix.scales.dtype == np.float16
    stored.set_friendly_name(path)
    weight = named(
        opset13.multiply(opset13.convert(stored, openvino.Type.f16 if half else openvino.Type.f32), scale),
        f"{path}/fq_weights_1",
    )
    if grouped:
        weight = opset13.reshape(weight, np.array(matrix.values.shape), False).output(0)
    if half:
        weight = named(opset13.convert(weight, openvino.Type.f32), f"{path}/fq_weights_1/convert")
    return weight


def _restored(stored: Any, path: str, kind: Any, name: str) -> Any:
    from openvino import opset13

    stored.set_friendly_name(path)
    return named(opset13.convert(stored, kind), name)


def named(node: Any, name: str) -> Any:
    """The node's output, once the node has its name."""
    node.set_friendly_name(name)
    return node.output(0)
