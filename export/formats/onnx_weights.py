"""How an ONNX graph stores its weights: float32, halved with a conversion behind it, or quantized in blocks."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from export.formats.quiet_conversion import quiet_conversion
from export.number_format import Weights

BLOCK = {"int8": 128, "int4": 32}
"""Weights along the input that share a scale; the smaller the format, the smaller the block."""
BITS = {"int8": 8, "int4": 4}


def store_weights(model: Any, weights: Weights, *, linears: Collection[str]) -> None:
    """Rewrite the matrices of a graph in place.

    Args:
        model: an `onnx_ir.Model` whose linears are MatMul(x, Transpose(W)) with W [out, in] an initializer.
        weights: float16 and bfloat16 are cast to float32 behind the weight; int8 and int4 become MatMulNBits,
            symmetric, so that zero stays exactly zero, with embeddings and head left in float32.
        linears: names of the weights that int8 and int4 quantize.
    """
    if weights in ("fp16", "bf16"):
        _halve(model, weights)
    elif weights in ("int8", "int4"):
        _quantize(model, weights, linears)


def _halve(model: Any, weights: Weights) -> None:
    import ml_dtypes
    import numpy as np
    import onnx_ir

    dtype = np.float16 if weights == "fp16" else ml_dtypes.bfloat16
    graph = model.graph
    first = graph[0]
    for value in list(graph.initializers.values()):
        array = value.const_value.numpy()
        if array.ndim != 2 or array.dtype != np.float32:
            continue
        users = list(value.uses())
        stored = onnx_ir.Value(
            name=f"{value.name}_{weights}",
            const_value=onnx_ir.tensor(array.astype(dtype), name=f"{value.name}_{weights}"),
            shape=value.shape,
        )
        stored.dtype = onnx_ir.DataType.FLOAT16 if weights == "fp16" else onnx_ir.DataType.BFLOAT16
        cast = onnx_ir.node("Cast", [stored], attributes={"to": onnx_ir.DataType.FLOAT}, name=f"{value.name}_cast")
        cast.outputs[0].name = f"{value.name}_float32"
        graph.register_initializer(stored)
        graph.insert_before(first, cast)
        for node, index in users:
            node.replace_input_with(index, cast.outputs[0])
        del graph.initializers[value.name]


def _quantize(model: Any, weights: Weights, linears: Collection[str]) -> None:
    import onnx_ir
    import onnxruntime.quantization.matmul_nbits_quantizer as nbits

    _fold_transposes(model, linears)
    config = nbits.DefaultWeightOnlyQuantConfig(
        block_size=BLOCK[weights], is_symmetric=True, bits=BITS[weights], accuracy_level=4
    )
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
