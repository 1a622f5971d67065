"""A graph of many layers of one form, each with weights of its own, in the form that an export stores.

One layer alone would stay in the caches of the processor, which in a model it does not. The layers read the same input
and their outputs are added up, which costs about what stands between layers in a model.

The stored forms are those of `export.number_formats` and `export.packing`; see `export.packing.linear_graph`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from search.latency.table import Conditions
from search.layer_forms import LayerForm
from shearling.kernel.packed_format import VERSION, Matrix, ValueType, bundle, pack
from shearling.quantization.layerwise import narrowed_group

Values = npt.NDArray[Any]


def build_stack(form: LayerForm, conditions: Conditions, *, copies: int, seed: int = 0) -> Any:
    """The graph, an `openvino.Model`: input `x` [1, tokens, in], one output [1, tokens, out].

    Args:
        form: of every layer.
        conditions: number format, kernel and tokens.
        copies: layers.
        seed: of the weights.

    Raises:
        CompilerMissing: the sparse operators cannot be built here.
    """
    import openvino
    from openvino import opset13 as ops

    random = np.random.default_rng(seed)
    x = ops.parameter([1, conditions.tokens, form.in_features], np.float32, name="x")
    total = None
    for copy in range(copies):
        y = _layer(x, form, conditions, random)
        y.set_friendly_name(f"layer_{copy}")
        total = y if total is None else ops.add(total, y)
    return openvino.Model([total], [x], "stack")


def _layer(x: Any, form: LayerForm, conditions: Conditions, random: np.random.Generator) -> Any:
    from openvino import opset13 as ops

    weight = random.standard_normal((form.out_features, form.in_features), dtype=np.float32)
    if conditions.zeros:
        weight[random.random(weight.shape, dtype=np.float32) < conditions.zeros] = 0.0
    product = (
        _packed_product(x, weight, conditions)
        if conditions.sparse_kernel
        else ops.matmul(x, _stored(weight, conditions), False, True)
    )
    if not form.rank:
        return product
    down = random.standard_normal((form.rank, form.in_features), dtype=np.float32)
    up = random.standard_normal((form.out_features, form.rank), dtype=np.float32)
    # The factors are never integers.
    factor = conditions.weight_format if not conditions.weight_format.startswith("int") else "fp32"
    inner = ops.matmul(x, _float(down, factor), False, True)
    return ops.add(product, ops.matmul(inner, _float(up, factor), False, True))


def _stored(weight: Values, conditions: Conditions) -> Any:
    """Constant and what restores it, [out, in] float32."""
    from openvino import opset13 as ops

    if not conditions.weight_format.startswith("int"):
        return _float(weight, conditions.weight_format)
    values, scales, group = _integers(weight, conditions)
    rows, columns = weight.shape
    grouped = (rows, columns // group, group) if group != columns else (rows, columns)
    constant = _integer_constant(values.reshape(grouped), bits=4 if group != columns else 8)
    scale = ops.constant(scales.reshape(*grouped[:-1], 1))
    restored = ops.multiply(ops.convert(constant, np.float16), scale)
    if group != columns:
        restored = ops.reshape(restored, np.array([rows, columns]), False)
    return ops.convert(restored, np.float32)


def _float(weight: Values, weight_format: str) -> Any:
    import openvino
    from openvino import opset13 as ops

    if weight_format in ("fp32", "fp16"):
        # OpenVINO halves it when it saves.
        return ops.constant(weight)
    bits = (weight.view(np.uint32) >> 16).astype(np.uint16)
    tensor = openvino.Tensor(bits, openvino.Shape(list(weight.shape)), openvino.Type.bf16)
    return ops.convert(openvino.op.Constant(tensor, shared_memory=False), openvino.Type.f32)


def _integers(weight: Values, conditions: Conditions) -> tuple[Values, Values, int]:
    """Values int8 [rows, columns], scales float16 [rows, groups], and the columns of a group."""
    rows, columns = weight.shape
    bits = int(conditions.weight_format.removeprefix("int"))
    group = (narrowed_group(columns, conditions.group_size) if bits == 4 else 0) or columns
    most = 7 if group != columns else 127
    grouped = weight.reshape(rows, columns // group, group)
    scales = np.maximum(np.abs(grouped).max(axis=-1, keepdims=True) / most, 1e-6)
    values = np.rint(grouped / scales).astype(np.int8)
    return values.reshape(rows, columns), scales.reshape(rows, -1).astype(np.float16), group


def _integer_constant(values: Values, *, bits: int) -> Any:
    import openvino

    if bits == 8:
        return openvino.op.Constant(openvino.Tensor(np.ascontiguousarray(values)), shared_memory=False)
    flat = values.reshape(-1).astype(np.uint8) & 0xF
    packed = flat[::2] | (flat[1::2] << 4)
    tensor = openvino.Tensor(packed, openvino.Shape(list(values.shape)), openvino.Type.i4)
    return openvino.op.Constant(tensor, shared_memory=False)


def _packed_product(x: Any, weight: Values, conditions: Conditions) -> Any:
    import openvino

    from shearling.kernel.openvino_extension import node_factory

    if conditions.weight_format == "bf16":
        matrix = Matrix((weight.view(np.uint32) >> 16).astype(np.uint16), ValueType.BF16)
    else:
        values, scales, group = _integers(weight, conditions)
        kind = ValueType.INT4 if group != weight.shape[1] else ValueType.INT8
        matrix = Matrix(values, kind, scales, group)
    constant = openvino.op.Constant(openvino.Tensor(bundle([pack(matrix)])), shared_memory=False)
    attributes = {
        "rows": [weight.shape[0]],
        "columns": weight.shape[1],
        "norm_epsilon": 0.0,
        "bias": False,
        "residual": False,
        "precision": "auto",
        "format_version": VERSION,
    }
    return node_factory().create("SparseLinear", [x, constant.output(0)], attributes)
