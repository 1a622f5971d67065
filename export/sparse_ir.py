"""An IR whose sparse weights are packed: `SparseLinear` and `SparseMLP` in place of the products that read them.

What one operator replaces is joined in its name, so that `export.stock_ir` can take it apart again.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from export.linear_graph import Product, reads_shape
from export.report import PackedLayer, PackingReport
from export.sparse_plan import LinearPlan, MLPPlan, PackedWeight, plan_packing
from export.stored_weight import read_matrix
from shearling.sparse_linear.extension import RT_INFO, node_factory
from shearling.sparse_linear.format import VERSION, pack

NAME_SEPARATOR = " | "


def pack_ir(ir: Any) -> PackingReport:
    """Replace what the cost rule of `export.sparse_plan` chooses, in place.

    Args:
        ir: an `openvino.Model` with bf16, int8 or int4 weights.

    Returns:
        Every compressed weight, packed or kept, with its bytes before and after.

    Raises:
        CompilerMissing: the operators cannot be built here.
    """
    plan = plan_packing(ir)
    layers = []
    for operator in plan.operators:
        layers += _replace_mlp(operator) if isinstance(operator, MLPPlan) else _replace_linears(operator)
    ir.validate_nodes_and_infer_types()
    counts = Counter(type(operator) for operator in plan.operators)
    operators = {"SparseLinear": counts[LinearPlan], "SparseMLP": counts[MLPPlan]}
    if plan.operators:
        ir.set_rt_info(str(VERSION), [*RT_INFO, "format_version"])
        for name, count in operators.items():
            ir.set_rt_info(str(count), [*RT_INFO, name])
    return PackingReport(operators=operators, layers=tuple(layers), kept=plan.kept)


def _replace_linears(plan: LinearPlan) -> list[PackedLayer]:
    import openvino

    products = [weight.product for weight in plan.weights]
    constants, layers = _pack_all(plan.weights, "SparseLinear")
    norm, residual = plan.norm, plan.residual
    inputs = [products[0].matmul.input_value(0) if norm is None else norm.x, *constants]
    if norm is not None:
        inputs.append(openvino.op.Constant(norm.gamma).output(0))
    if residual is not None:
        inputs.append(residual.other)
    attributes = {
        "rows": [product.shape[0] for product in products],
        "columns": products[0].shape[1],
        "norm_epsilon": 0.0 if norm is None else norm.epsilon,
        "bias": False,
        "residual": residual is not None,
    }
    node = _create("SparseLinear", inputs, attributes)
    ends = [product.matmul for product in products] if residual is None else [residual.add]
    node.set_friendly_name(NAME_SEPARATOR.join([*(product.matmul.get_friendly_name() for product in products), *_names(residual)]))
    _take_over(ends, node)
    _release_shape(norm)
    return layers


def _replace_mlp(plan: MLPPlan) -> list[PackedLayer]:
    import openvino

    gated, norm, residual = plan.gated, plan.norm, plan.residual
    constants, layers = _pack_all(plan.weights, "SparseMLP")
    inputs = [gated.gate.matmul.input_value(0) if norm is None else norm.x, *constants]
    if norm is not None:
        inputs.append(openvino.op.Constant(norm.gamma).output(0))
    attributes = {
        "columns": gated.gate.shape[1],
        "inner": gated.gate.shape[0],
        "activation": gated.activation,
        "gated": True,
        "norm_epsilon": 0.0 if norm is None else norm.epsilon,
        "residual": residual is not None,
    }
    node = _create("SparseMLP", inputs, attributes)
    replaced = [gated.gate.matmul, gated.up.matmul, *gated.between, gated.down.matmul]
    node.set_friendly_name(NAME_SEPARATOR.join([*(part.get_friendly_name() for part in replaced), *_names(residual)]))
    _take_over([gated.down.matmul if residual is None else residual.add], node)
    _release_shape(norm)
    return layers


def _create(kind: str, inputs: list[Any], attributes: dict[str, Any]) -> Any:
    return node_factory().create(kind, inputs, {**attributes, "precision": "auto", "format_version": VERSION})


def _pack_all(weights: tuple[PackedWeight, ...], operator: str) -> tuple[list[Any], list[PackedLayer]]:
    packed = [_pack(weight, operator) for weight in weights]
    return [constant for constant, _ in packed], [layer for _, layer in packed]


def _pack(weight: PackedWeight, operator: str) -> tuple[Any, PackedLayer]:
    import openvino

    product: Product = weight.product
    matrix = read_matrix(product)
    packed = pack(matrix, weight.encoding)
    constant = openvino.op.Constant(openvino.Tensor(packed), shared_memory=False)
    constant.set_friendly_name(product.constant.get_friendly_name())
    layer = PackedLayer(
        path=product.path,
        operator=operator,
        weights=product.storage,
        encoding=weight.encoding.name.lower(),
        shape=product.shape,
        zeros=int(np.prod(product.shape)) - weight.stored,
        bytes_before=weight.bytes_before,
        bytes_after=packed.nbytes,
    )
    return constant.output(0), layer


def _take_over(ends: list[Any], node: Any) -> None:
    """Let the readers of `ends` read the outputs of `node`, under the same tensor names."""
    for end, output in zip(ends, node.outputs(), strict=True):
        names = end.output(0).get_names()
        for reader in end.output(0).get_target_inputs():
            reader.replace_source_output(output)
        output.get_tensor().set_names(names)


def _release_shape(norm: Any | None) -> None:
    # What asks the norm for its shape can ask its input.
    if norm is not None:
        for reader in norm.scaled.output(0).get_target_inputs():
            if reads_shape(reader):
                reader.replace_source_output(norm.x)


def _names(residual: Any | None) -> list[str]:
    return [] if residual is None else [residual.add.get_friendly_name()]
