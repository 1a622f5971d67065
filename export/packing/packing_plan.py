"""Which weights of an IR are packed, and in which operators.

A decoder whose weights are integers is packed whole, with zeros or without: our products with one row read memory
faster than the runtime's, and a layer that is packed becomes one node, with its attention, when it is loaded
(docs/kernels.md). Elsewhere the cost rule of `export.packing.cost` decides, and where anything is packed the head is
too, which is a third of a small model. Other weights that several nodes read stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from export.packing.cost import PackingCost, measure_packing, saves, too_little
from export.packing.linear_graph import (
    Gated,
    Norm,
    OutputHead,
    Product,
    Residual,
    find_gated,
    find_head,
    find_norm,
    find_products,
    find_residual,
    group_by_input,
    readers_of,
)
from export.packing.stored_weight import read_matrix, stored_bytes


@dataclass(frozen=True)
class PackedWeight:
    """A matrix that will be packed, and how."""

    product: Product
    cost: PackingCost


@dataclass(frozen=True)
class LinearPlan:
    """One `SparseLinear`: products of the same input.

    Attributes:
        norm: that goes before them inside the operator.
        residual: that is added inside it; of one product alone, and without a norm of the product.
    """

    weights: tuple[PackedWeight, ...]
    norm: Norm | None
    residual: Residual | None


@dataclass(frozen=True)
class MLPPlan:
    """One `SparseMLP`: gate, up and down.

    Attributes:
        residual: the addition of what went into the norm, to what has none of its own.
    """

    weights: tuple[PackedWeight, PackedWeight, PackedWeight]
    gated: Gated
    norm: Norm | None
    residual: Residual | None


@dataclass(frozen=True)
class LayerPlan:
    """One `SparseLayer`: the output projection of an attention, the MLP behind it, and what reads both next.

    Attributes:
        projection: one product with its residual, here with a norm of the product or without; so is that of `mlp`.
        following: products of the next layer's norm; None at the end.
    """

    projection: LinearPlan
    mlp: MLPPlan
    following: LinearPlan | None


@dataclass(frozen=True)
class HeadPlan:
    """One `SparseHead`, and a `SparseEmbedding` for each of its lookups."""

    weight: PackedWeight
    head: OutputHead


Operator = LinearPlan | MLPPlan | LayerPlan | HeadPlan
PlanT = TypeVar("PlanT", LinearPlan, MLPPlan)


@dataclass(frozen=True)
class PackingPlan:
    """What is packed.

    Attributes:
        kept: weights that stay as they are, and why.
    """

    operators: tuple[Operator, ...]
    kept: dict[str, str]


def plan_packing(ir: Any) -> PackingPlan:
    """Decide for every compressed weight of an IR.

    Args:
        ir: an `openvino.Model`; not modified.
    """
    kept: dict[str, str] = {}
    weights: dict[str, PackedWeight] = {}
    found = find_products(ir)
    head = find_head(ir, found)
    decoder = head is not None
    for product in found:
        if head is not None and product is head.product:
            continue
        reason = _obstacle(product)
        if reason is None:
            weights[product.path] = _measure(product)
        else:
            kept[product.path] = reason
    products = [weight.product for weight in weights.values()]
    mlps: list[MLPPlan] = []
    for gated in find_gated(products):
        matrices = (weights[gated.gate.path], weights[gated.up.path], weights[gated.down.path])
        if _packs(matrices, decoder=decoder):
            mlps.append(_mlp_plan(gated, matrices))
    fused = {part.product.path for mlp in mlps for part in mlp.weights}
    linears: list[LinearPlan] = []
    for group in group_by_input([product for product in products if product.path not in fused]):
        # In the same order in every layer: layers that are alike become one node when they are loaded.
        parts = tuple(weights[path] for path in sorted(product.path for product in group))
        if _packs(parts, decoder=decoder):
            linears.append(_linear_plan(parts))
        else:
            kept |= {part.product.path: too_little(part.cost, part.product.shape) for part in parts}
    operators = _join_layers(linears, mlps)
    if head is not None:
        weight = _measure(head.product)
        if (operators or saves([weight.cost])) and _readable(head.product) is None:
            operators = (*operators, HeadPlan(weight, head))
        else:
            kept[head.product.path] = _obstacle(head.product) or too_little(weight.cost, head.product.shape)
    return PackingPlan(operators, kept)


def _obstacle(product: Product) -> str | None:
    return "read by other nodes too" if product.shared else _readable(product)


def _readable(product: Product) -> str | None:
    if product.scale is not None and product.scale.get_element_type().get_type_name() not in ("f16", "f32"):
        return f"scales of type {product.scale.get_element_type().get_type_name()}"
    return None


def _measure(product: Product) -> PackedWeight:
    return PackedWeight(product, measure_packing(read_matrix(product), stored_bytes(product)))


def _packs(parts: Sequence[PackedWeight], *, decoder: bool) -> bool:
    integers = all(part.product.storage != "bf16" for part in parts)
    return (decoder and integers) or saves([part.cost for part in parts])


def _mlp_plan(gated: Gated, parts: tuple[PackedWeight, PackedWeight, PackedWeight]) -> MLPPlan:
    norm = find_norm([gated.gate, gated.up])
    residual = find_residual(gated.down)
    entering = norm.x if norm is not None else gated.gate.matmul.input_value(0)
    if residual is not None and residual.other != entering:
        residual = None
    return MLPPlan(parts, gated, norm, residual)


def _linear_plan(parts: tuple[PackedWeight, ...]) -> LinearPlan:
    products = [part.product for part in parts]
    residual = find_residual(products[0]) if len(products) == 1 else None
    return LinearPlan(parts, find_norm(products), residual)


def _join_layers(linears: Sequence[LinearPlan], mlps: Sequence[MLPPlan]) -> tuple[Operator, ...]:
    """Projection, MLP and the next layer's products in one operator, where nothing else reads what lies between the
    first two.
    """
    joined: list[Operator] = []
    taken: list[LinearPlan] = []
    for mlp in mlps:
        projection = next((linear for linear in linears if _leads_to(linear, mlp)), None)
        if projection is None or mlp.residual is None:
            joined.append(_without_norm(mlp))
            continue
        end = mlp.residual.add.output(0)
        following = next((linear for linear in linears if linear.norm is not None and linear.norm.x == end), None)
        joined.append(LayerPlan(projection, mlp, following))
        taken += [projection] if following is None else [projection, following]
    alone = (linear for linear in linears if not any(linear is other for other in taken))
    return (*(_without_norm(linear) for linear in alone), *joined)


def _without_norm(plan: PlanT) -> PlanT:
    """The same, where nothing but a layer has a norm between a product and its addition."""
    normed = plan.residual is not None and plan.residual.norm is not None
    return replace(plan, residual=None) if normed else plan


def _leads_to(linear: LinearPlan, mlp: MLPPlan) -> bool:
    if linear.residual is None or linear.norm is not None or mlp.residual is None or mlp.norm is None:
        return False
    sum_ = linear.residual.add.output(0)
    # Two nodes of the norm and the second addition read it.
    return bool(mlp.norm.x == sum_ and len(readers_of(sum_)) == 3)
