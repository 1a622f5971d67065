"""Weights of an ONNX graph rewritten: halved with a conversion behind them, or quantized in blocks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from export.quiet_conversion import quiet_conversion
from shearling.console import log


def lazy_tensor(name: str, shape: Sequence[int], dtype: npt.DTypeLike, make: Callable[[], npt.NDArray[Any]]) -> Any:
    """A tensor of an `onnx_ir` graph that is made when it is asked for, and not kept.

    Args:
        name: of it.
        shape: of it.
        dtype: of numpy.
        make: gives it.
    """
    import onnx_ir

    kind = onnx_ir.DataType.from_numpy(np.dtype(dtype))
    return onnx_ir.LazyTensor(
        lambda: onnx_ir.tensor(make(), dtype=kind, name=name), dtype=kind, shape=onnx_ir.Shape(shape), name=name
    )


def _cast(source: Any, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    cast: npt.NDArray[Any] = source.numpy().astype(dtype)
    return cast


def _transpose(source: Any) -> npt.NDArray[Any]:
    return np.ascontiguousarray(source.numpy().T)


def cast_matrices(model: Any, dtype: Any, data_type: Any, *, suffix: str) -> None:
    """Store every float32 matrix in another type, with a cast to float32 behind it, in place.

    Args:
        model: an `onnx_ir.Model`.
        dtype: of numpy.
        data_type: the same of `onnx_ir`.
        suffix: behind the names of the weights, `NAME_SUFFIX`; a name of a number format, by which zeros are read.
    """
    import onnx_ir

    graph = model.graph
    first = graph[0]
    for value in list(graph.initializers.values()):
        source = value.const_value
        if len(source.shape) != 2 or source.dtype != onnx_ir.DataType.FLOAT:
            continue
        users = list(value.uses())
        name = f"{value.name}_{suffix}"
        halved = lazy_tensor(name, source.shape, dtype, partial(_cast, source, dtype))
        stored = onnx_ir.Value(name=name, const_value=halved, shape=value.shape)
        stored.dtype = data_type
        cast = onnx_ir.node("Cast", [stored], attributes={"to": onnx_ir.DataType.FLOAT}, name=f"{value.name}_cast")
        cast.outputs[0].name = f"{value.name}_float32"
        graph.register_initializer(stored)
        graph.insert_before(first, cast)
        for node, index in users:
            node.replace_input_with(index, cast.outputs[0])
        del graph.initializers[value.name]


def quantize_blocks(model: Any, linears: Collection[str], *, bits: int, block: int) -> None:
    """Make products MatMulNBits, symmetric, so that zero stays exactly zero, in place.

    Args:
        model: an `onnx_ir.Model`; see `export.number_formats.number_format`.
        linears: names of the weights that are quantized; what is left in float is told.
        bits: of a weight.
        block: weights along the input that share a scale.
    """
    import onnx_ir

    _fold_transposes(model, linears)
    graph = model.graph
    unused = set()
    quantized: dict[str, Any] = {}
    for node in list(graph):
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        if weight is None or not weight.is_initializer():
            continue
        before = quantized.get(weight.name)
        product = _quantized(node, weight, bits=bits, block=block) if before is None else _product(node, before)
        if product is not None:
            quantized[weight.name] = product
            onnx_ir.convenience.replace_nodes_and_values(graph, node, [node], [product], node.outputs, product.outputs)
            unused.add(weight)
    for weight in unused:
        if not weight.uses():
            del graph.initializers[weight.name]
    _say_what_is_left(graph, linears)
    model.opset_imports["com.microsoft"] = 1


def _quantized(matmul: Any, weight: Any, *, bits: int, block: int) -> Any | None:
    """The product with its weight in blocks, made by ONNX Runtime in a graph of nothing else; None where it does not.

    Only one weight is a protobuf at a time: that of a whole model holds every weight twice more.
    """
    import onnx_ir
    import onnxruntime.quantization.matmul_nbits_quantizer as nbits

    ends = (matmul.inputs[0], matmul.outputs[0])
    x, y = (onnx_ir.Value(name=value.name, shape=value.shape, type=value.type) for value in ends)
    alone = onnx_ir.Value(name=weight.name, const_value=weight.const_value, shape=weight.shape, type=weight.type)
    node = onnx_ir.Node("", "MatMul", [x, alone], outputs=[y], name=matmul.name)
    graph = onnx_ir.Graph([x], [y], nodes=[node], initializers=[alone], opset_imports={"": 21}, name="product")
    config = nbits.DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=True, bits=bits, accuracy_level=4)
    proto = onnx_ir.to_proto(onnx_ir.Model(graph, ir_version=10))
    with quiet_conversion():
        quantizer = nbits.MatMulNBitsQuantizer(proto, algo_config=config)
        quantizer.process()
    nodes = list(onnx_ir.from_proto(quantizer.model.model).graph)
    if [made.op_type for made in nodes] != ["MatMulNBits"]:
        return None
    made = nodes[0]
    stored = [_initializer(matmul.graph, value.name, value.const_value.numpy()) for value in made.inputs[1:]]
    return _product(matmul, made, stored)


def _product(matmul: Any, made: Any, stored: Sequence[Any] | None = None) -> Any:
    """What stands in place of a product: one with these integers and scales, or with those of another of its weight."""
    import onnx_ir

    inputs, attributes = [matmul.inputs[0], *(stored or made.inputs[1:])], list(made.attributes.values())
    product = onnx_ir.Node(made.domain, made.op_type, inputs, attributes, name=matmul.name)
    product.outputs[0].name = matmul.outputs[0].name
    return product


def _initializer(graph: Any, name: str, array: npt.NDArray[Any]) -> Any:
    import onnx_ir

    if name not in graph.initializers:
        value = onnx_ir.Value(name=name, const_value=onnx_ir.tensor(array, name=name), shape=onnx_ir.Shape(array.shape))
        value.dtype = onnx_ir.DataType.from_numpy(array.dtype)
        graph.register_initializer(value)
    return graph.initializers[name]


def _fold_transposes(model: Any, quantized: Collection[str]) -> None:
    """Turn MatMul(x, Transpose(W)) into MatMul(x, W'), as the quantizer expects."""
    import onnx_ir

    graph = model.graph
    for weight in list(graph.initializers.values()):
        # A layer that a model applies several times has a transposition for each.
        transposes = [node for node, _ in weight.uses()] if weight.name in quantized else []
        if not transposes or not all(_feeds_products(node) for node in transposes):
            continue
        shape = tuple(reversed(weight.const_value.shape))
        transposed = lazy_tensor(weight.name, shape, np.float32, partial(_transpose, weight.const_value))
        folded = onnx_ir.Value(name=weight.name, const_value=transposed, shape=onnx_ir.Shape(shape))
        folded.dtype = onnx_ir.DataType.FLOAT
        for node in transposes:
            for user, index in list(node.outputs[0].uses()):
                user.replace_input_with(index, folded)
            graph.remove(node, safe=True)
        del graph.initializers[weight.name]
        graph.register_initializer(folded)


def _feeds_products(node: Any) -> bool:
    return node.op_type == "Transpose" and all(user.op_type == "MatMul" for user, _ in node.outputs[0].uses())


def _say_what_is_left(graph: Any, linears: Collection[str]) -> None:
    left = sorted(name for name in linears if name in graph.initializers and graph.initializers[name].uses())
    if left:
        log.print(f"onnx: {len(left)} of {len(linears)} layers stay in floating point, such as that of {left[0]}")
