"""A packed IR taken apart again: the same integers, scales and operators that any OpenVINO runs without an extension."""

from __future__ import annotations

from typing import Any

import numpy as np

from export.sparse_ir import NAME_SEPARATOR
from export.stored_weight import make_constant
from shearling.errors import ArtefactCorrupt
from shearling.sparse_linear.extension import RT_INFO
from shearling.sparse_linear.format import Matrix, ValueType, unpack

OPERATORS = ("SparseLinear", "SparseMLP")


def unpack_ir(ir: Any) -> None:
    """Undo `export.sparse_ir.pack_ir`, in place: every stored weight and scale comes back bit for bit.

    Args:
        ir: an `openvino.Model`, read with the extension.

    Raises:
        ArtefactCorrupt: a packed constant lies; names it.
    """
    for node in ir.get_ordered_ops():
        if node.get_type_name() in OPERATORS:
            outputs = _rebuild_mlp(node) if node.get_type_name() == "SparseMLP" else _rebuild_linears(node)
            for old, new in zip(node.outputs(), outputs, strict=True):
                names = old.get_names()
                for reader in old.get_target_inputs():
                    reader.replace_source_output(new)
                new.get_tensor().set_names(names)
    if ir.has_rt_info([RT_INFO[0]]):
        del ir.get_rt_info()[RT_INFO[0]]
    ir.validate_nodes_and_infer_types()


def read_packed(constant: Any) -> Matrix:
    """The matrix in a packed constant, verified.

    Raises:
        ArtefactCorrupt: it lies; names the constant.
    """
    try:
        return unpack(np.array(constant.data))
    except ArtefactCorrupt as error:
        raise ArtefactCorrupt(error.message, where=constant.get_friendly_name(), remedy="Export again") from None


def _rebuild_linears(node: Any) -> list[Any]:
    from openvino import opset13

    attributes, inputs, names = _parts(node)
    count = len(attributes["rows"])
    weights, rest = inputs[1 : 1 + count], inputs[1 + count :]
    x = _norm(inputs[0], rest.pop(0), attributes) if attributes["norm_epsilon"] else inputs[0]
    outputs = [_product(x, weight.get_node(), names.pop(0)) for weight in weights]
    if attributes["residual"]:
        return [_named(opset13.add(rest[0], outputs[0]), names.pop(0))]
    return outputs


def _rebuild_mlp(node: Any) -> list[Any]:
    from openvino import opset13

    attributes, inputs, names = _parts(node)
    x = _norm(inputs[0], inputs[4], attributes) if attributes["norm_epsilon"] else inputs[0]
    gate = _product(x, inputs[1].get_node(), names.pop(0))
    up = _product(x, inputs[2].get_node(), names.pop(0))
    activated = opset13.swish(gate) if attributes["activation"] == "silu" else opset13.gelu(gate, attributes["activation"].removeprefix("gelu_"))
    between = opset13.multiply(_named(activated, names.pop(0)), up)
    down = _product(_named(between, names.pop(0)), inputs[3].get_node(), names.pop(0))
    if attributes["residual"]:
        return [_named(opset13.add(inputs[0], down), names.pop(0))]
    return [down]


def _parts(node: Any) -> tuple[dict[str, Any], list[Any], list[str]]:
    inputs = [node.input_value(port) for port in range(len(node.inputs()))]
    return node.get_attributes(), inputs, node.get_friendly_name().split(NAME_SEPARATOR)


def _norm(x: Any, gamma: Any, attributes: dict[str, Any]) -> Any:
    from openvino import opset13

    scalar = np.ones((1, 1, 1), np.float32)
    mean = opset13.reduce_mean(opset13.power(x, 2 * scalar), np.array([-1]), keep_dims=True)
    root = opset13.sqrt(opset13.add(mean, np.float32(attributes["norm_epsilon"]) * scalar))
    normalized = opset13.multiply(x, opset13.divide(scalar, root))
    return opset13.multiply(gamma.get_node().data.reshape(1, 1, -1), normalized).output(0)


def _product(x: Any, constant: Any, name: str) -> Any:
    import openvino
    from openvino import opset13

    path, matrix = constant.get_friendly_name(), read_packed(constant)
    if matrix.value_type is ValueType.BF16:
        weight = _restore(make_constant(matrix.values, openvino.Type.bf16), path, openvino.Type.f32, path.removesuffix("_compressed"))
        return _named(opset13.matmul(x, weight, False, True), name)
    if matrix.scales is None:
        raise ArtefactCorrupt("packed integers without scales", where=path)
    rows, groups = matrix.scales.shape
    grouped = matrix.value_type is ValueType.INT4
    shape = (rows, groups, -1) if grouped else matrix.values.shape
    stored = make_constant(matrix.values.reshape(shape), openvino.Type.i4 if grouped else openvino.Type.i8)
    scale = openvino.op.Constant(np.ascontiguousarray(matrix.scales.reshape((rows, groups, 1) if grouped else (rows, 1))))
    scale.set_friendly_name(f"{path}/scale")
    half = matrix.scales.dtype == np.float16
    stored.set_friendly_name(path)
    weight = _named(opset13.multiply(opset13.convert(stored, openvino.Type.f16 if half else openvino.Type.f32), scale), f"{path}/fq_weights_1")
    if grouped:
        weight = opset13.reshape(weight, np.array(matrix.values.shape), False).output(0)
    if half:
        weight = _named(opset13.convert(weight, openvino.Type.f32), f"{path}/fq_weights_1/convert")
    return _named(opset13.matmul(x, weight, False, True), name)


def _restore(stored: Any, path: str, kind: Any, name: str) -> Any:
    from openvino import opset13

    stored.set_friendly_name(path)
    return _named(opset13.convert(stored, kind), name)


def _named(node: Any, name: str) -> Any:
    node.set_friendly_name(name)
    return node.output(0)
