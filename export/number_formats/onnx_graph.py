"""Weights of an ONNX graph rewritten: halved with a conversion behind them, or quantized in blocks."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from export.quiet_conversion import quiet_conversion


def cast_matrices(model: Any, dtype: Any, data_type: Any, *, suffix: str) -> None:
    """Store every float32 matrix in another type, with a cast to float32 behind it, in place.

    Args:
        model: an `onnx_ir.Model`.
        dtype: of numpy.
        data_type: the same of `onnx_ir`.
        suffix: behind the names of the weights, `NAME_SUFFIX`; a name of a number format, by which zeros are read.
    """
    import numpy as np
    import onnx_ir

    graph = model.graph
    first = graph[0]
    for value in list(graph.initializers.values()):
        array = value.const_value.numpy()
        if array.ndim != 2 or array.dtype != np.float32:
            continue
        users = list(value.uses())
        name = f"{value.name}_{suffix}"
        stored = onnx_ir.Value(name=name, const_value=onnx_ir.tensor(array.astype(dtype), name=name), shape=value.shape)
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
        linears: names of the weights that are quantized.
        bits: of a weight.
        block: weights along the input that share a scale.
    """
    import onnx_ir
    import onnxruntime.quantization.matmul_nbits_quantizer as nbits

    _fold_transposes(model, linears)
    config = nbits.DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=True, bits=bits, accuracy_level=4)
    with quiet_conversion():
        quantizer = nbits.MatMulNBitsQuantizer(onnx_ir.to_proto(model), algo_config=config)
        quantizer.process()
    quantized = onnx_ir.from_proto(quantizer.model.model)
    model.graph = quantized.graph
    model.opset_imports.update(quantized.opset_imports)


def _fold_transposes(model: Any, quantized: Collection[str]) -> None:
    """Turn MatMul(x, Transpose(W)) into MatMul(x, W'), as the quantizer expects."""
    import numpy as np
    import onnx_ir

    graph = model.graph
    for node in list(graph):
        if node.op_type != "Transpose":
            continue
        weight = node.inputs[0]
        users = list(node.outputs[0].uses())
        if (
            weight is None
            or not weight.is_initializer()
            or len(weight.uses()) > 1
            or any(user.op_type != "MatMul" for user, _ in users)
        ):
            continue
        if weight.name not in quantized:
            continue
        array = np.ascontiguousarray(weight.const_value.numpy().T)
        folded = onnx_ir.Value(
            name=weight.name, const_value=onnx_ir.tensor(array, name=weight.name), shape=onnx_ir.Shape(array.shape)
        )
        folded.dtype = onnx_ir.DataType.FLOAT
        for user, index in users:
            user.replace_input_with(index, folded)
        graph.remove(node, safe=True)
        del graph.initializers[weight.name]
        graph.register_initializer(folded)
