"""An IR whose sparse weights are packed: operators of our own in place of the products that read them.

What one operator replaces is joined in its name, and the weights that its constant bundles in the name of that, so that
`shearling.kernel.loading.dense_form` and `export.packing.stock_ir` can take both apart again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from export.packing.joined_products import find_joined, split_joined
from export.packing.linear_graph import Norm, Product, reads_shape
from export.packing.packing_plan import HeadPlan, LayerPlan, LinearPlan, MLPPlan, Operator, PackedWeight, plan_packing
from export.packing.packing_report import PackedLayer, PackingReport
from export.packing.stored_weight import read_matrix
from shearling.kernel.bundle import OPERATORS
from shearling.kernel.library import pack_anywhere
from shearling.kernel.loading.dense_form import NAME_SEPARATOR
from shearling.kernel.openvino_extension import RT_INFO, node_factory
from shearling.kernel.packed_format import VERSION, Bytes, bundle


def pack_ir(ir: Any) -> PackingReport:
    """Replace what `export.packing.packing_plan` chooses, in place.

    Args:
        ir: an `openvino.Model` with bf16, int8 or int4 weights.

    Returns:
        Every compressed weight, packed or kept, with its bytes before and after.

    Raises:
        CompilerMissing: the operators cannot be built here.
    """
    plan = plan_packing(ir)
    if joined := find_joined(ir, kept=plan.kept):
        split_joined(joined)
        plan = plan_packing(ir)
    layers: list[PackedLayer] = []
    for operator in plan.operators:
        layers += _replace(operator)
    ir.validate_nodes_and_infer_types()
    operators = dict(
        Counter(node.get_type_name() for node in ir.get_ordered_ops() if node.get_type_name() in OPERATORS)
    )
    if operators:
        ir.set_rt_info(str(VERSION), [*RT_INFO, "format_version"])
        for name, count in operators.items():
            ir.set_rt_info(str(count), [*RT_INFO, name])
    return PackingReport(operators=operators, layers=tuple(layers), kept=plan.kept)


def _replace(operator: Operator) -> list[PackedLayer]:
    if isinstance(operator, HeadPlan):
        return _replace_head(operator)
    if isinstance(operator, LinearPlan):
        return _replace_linears(operator)
    return _replace_mlp(operator) if isinstance(operator, MLPPlan) else _replace_layer(operator)


def _replace_linears(plan: LinearPlan) -> list[PackedLayer]:
    products = [weight.product for weight in plan.weights]
    residual = plan.residual
    site = _Site("SparseLinear", plan.weights, [plan.norm], [*_linear_nodes(plan)])
    inputs = [_entry(plan.norm, products[0]), site.constant]
    if residual is not None:
        inputs.append(residual.other)
    attributes = {
        "rows": [product.shape[0] for product in products],
        "columns": products[0].shape[1],
        "norm_epsilon": _epsilon(plan.norm),
        "bias": False,
        "residual": residual is not None,
    }
    return site.put(
        inputs, attributes, ends=[product.matmul for product in products] if residual is None else [residual.add]
    )


def _replace_mlp(plan: MLPPlan) -> list[PackedLayer]:
    gated = plan.gated
    site = _Site("SparseMLP", plan.weights, [plan.norm], _mlp_nodes(plan))
    attributes = {"columns": gated.gate.shape[1], **_mlp_attributes(plan), "residual": plan.residual is not None}
    end = gated.down.matmul if plan.residual is None else plan.residual.add
    return site.put([_entry(plan.norm, gated.gate), site.constant], attributes, ends=[end])


def _replace_layer(plan: LayerPlan) -> list[PackedLayer]:
    projection, mlp, following = plan.projection, plan.mlp, plan.following
    if projection.residual is None or mlp.residual is None:
        raise ValueError("a layer joins two residuals")
    next_weights = () if following is None else following.weights
    next_norm = None if following is None else following.norm
    nodes = [*_linear_nodes(projection), *_mlp_nodes(mlp), *([] if following is None else _linear_nodes(following))]
    norms = [projection.residual.norm, mlp.norm, mlp.residual.norm, next_norm]
    site = _Site("SparseLayer", (*projection.weights, *mlp.weights, *next_weights), norms, nodes)
    product = projection.weights[0].product
    attributes = {
        "rows": [weight.product.shape[0] for weight in next_weights],
        "columns": product.shape[1],
        "hidden": product.shape[0],
        "projection_epsilon": _epsilon(projection.residual.norm),
        **_mlp_attributes(mlp),
        "mlp_epsilon": _epsilon(mlp.residual.norm),
        "next_epsilon": _epsilon(next_norm),
        "bias": False,
    }
    inputs = [product.matmul.input_value(0), projection.residual.other, site.constant]
    return site.put(inputs, attributes, ends=[mlp.residual.add, *(weight.product.matmul for weight in next_weights)])


def _replace_head(plan: HeadPlan) -> list[PackedLayer]:
    product = plan.head.product
    site = _Site("SparseHead", [plan.weight], [], [product.matmul])
    sizes = {"rows": product.shape[0], "columns": product.shape[1]}
    layers = site.put([product.matmul.input_value(0), site.constant], sizes, ends=[product.matmul])
    for lookup in plan.head.lookups:
        _put(
            "SparseEmbedding", lookup.get_friendly_name(), [lookup.input_value(1), site.constant], sizes, ends=[lookup]
        )
    return layers


class _Site:
    """Where one operator goes: its constant, and the nodes that it replaces."""

    def __init__(
        self, operator: str, weights: Sequence[PackedWeight], norms: Sequence[Norm | None], nodes: Sequence[Any]
    ) -> None:
        import openvino

        self._operator = operator
        self._norms = [norm for norm in norms if norm is not None]
        self._name = NAME_SEPARATOR.join(node.get_friendly_name() for node in nodes)
        packed = [pack_anywhere(read_matrix(weight.product), weight.cost.encoding) for weight in weights]
        content = bundle(packed, [norm.gamma for norm in self._norms])
        constant = openvino.op.Constant(openvino.Tensor(content), shared_memory=False)
        constant.set_friendly_name(
            NAME_SEPARATOR.join(weight.product.constant.get_friendly_name() for weight in weights)
        )
        self.constant = constant.output(0)
        self._layers = [self._describe(weight, content) for weight, content in zip(weights, packed, strict=True)]

    def put(self, inputs: list[Any], attributes: dict[str, Any], *, ends: list[Any]) -> list[PackedLayer]:
        """Create the node, and let the readers of `ends` read its outputs under the same tensor names."""
        _put(self._operator, self._name, inputs, attributes, ends=ends)
        for norm in self._norms:
            # What asks a norm for its shape can ask its input.
            for reader in norm.scaled.output(0).get_target_inputs():
                if reads_shape(reader):
                    reader.replace_source_output(norm.x)
        return self._layers

    def _describe(self, weight: PackedWeight, packed: Bytes) -> PackedLayer:
        product = weight.product
        return PackedLayer(
            path=product.path,
            operator=self._operator,
            node=self._name,
            weight_format=product.storage,
            encoding=weight.cost.encoding.name.lower(),
            shape=product.shape,
            zeros=int(np.prod(product.shape)) - weight.cost.stored,
            bytes_before=weight.cost.bytes_before,
            bytes_after=packed.nbytes,
        )


def _put(operator: str, name: str, inputs: list[Any], attributes: dict[str, Any], *, ends: list[Any]) -> None:
    node = node_factory().create(operator, inputs, {**attributes, "precision": "auto", "format_version": VERSION})
    node.set_friendly_name(name)
    for end, output in zip(ends, node.outputs(), strict=True):
        names = end.output(0).get_names()
        for reader in end.output(0).get_target_inputs():
            reader.replace_source_output(output)
        output.get_tensor().set_names(names)


def _entry(norm: Norm | None, product: Product) -> Any:
    return product.matmul.input_value(0) if norm is None else norm.x


def _epsilon(norm: Norm | None) -> float:
    return 0.0 if norm is None else norm.epsilon


def _mlp_attributes(plan: MLPPlan) -> dict[str, Any]:
    gated = plan.gated
    return {
        "inner": gated.gate.shape[0],
        "activation": gated.activation,
        "gated": True,
        "norm_epsilon": _epsilon(plan.norm),
    }


def _linear_nodes(plan: LinearPlan) -> list[Any]:
    return [
        *(weight.product.matmul for weight in plan.weights),
        *([] if plan.residual is None else [plan.residual.add]),
    ]


def _mlp_nodes(plan: MLPPlan) -> list[Any]:
    gated = plan.gated
    nodes = [gated.gate.matmul, gated.up.matmul, *gated.between, gated.down.matmul]
    return nodes if plan.residual is None else [*nodes, plan.residual.add]
