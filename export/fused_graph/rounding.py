"""The integers that OpenVINO's file has for the same weights: NNCF rounds the bare products, some at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

from export.fused_graph.decoder import Array, FusedDecoder
from export.packing.linear_graph import find_products
from export.packing.stored_weight import read_matrix
from shearling.kernel.packed_format import Matrix
from shearling.registry.number_formats import NumberFormat

TOGETHER = 8
"""Weights that are rounded at a time: their floats are held twice meanwhile."""
FORMAT = "onnx-genai"


def round_decoder(
    decoder: FusedDecoder, chosen: Mapping[str, Matrix], *, layers: NumberFormat, others: NumberFormat
) -> dict[str, Matrix]:
    """Integers for every matrix of a decoder.

    Args:
        decoder: float weights.
        chosen: module path -> integers that were chosen beforehand; they stay.
        layers: number format of the linears inside the layers.
        others: of the embedding and the head.

    Returns:
        Module path -> its weight; one object for an embedding and a head that are one matrix.
    """
    inner = {linear.path: linear.weight for layer in decoder.layers for linear in layer.linears}
    embedding, rows = decoder.embedding
    outer = {decoder.head.path: decoder.head.weight} | ({} if decoder.tied else {embedding: rows})
    found = dict(chosen)
    for weights, number_format in ((inner, layers), (outer, others)):
        left = {path: weight for path, weight in weights.items() if path not in found}
        found |= _round(left, number_format.load_for(FORMAT))
    return found | ({embedding: found[decoder.head.path]} if decoder.tied else {})


def _round(weights: Mapping[str, Array], round_products: Callable[[Any], Any]) -> Iterator[tuple[str, Matrix]]:
    items = iter(weights.items())
    while some := dict(islice(items, TOGETHER)):
        rounded = round_products(_products(some))
        yield from ((product.path, read_matrix(product)) for product in find_products(rounded))


def _products(weights: Mapping[str, Array]) -> Any:
    """An IR of nothing but y = x Wᵀ, for each weight."""
    import openvino
    from openvino import opset13

    inputs, outputs = [], []
    for path, weight in weights.items():
        constant = openvino.op.Constant(weight, shared_memory=True)
        constant.set_friendly_name(f"{path}.weight")
        inputs.append(opset13.parameter([-1, weight.shape[1]], dtype=openvino.Type.f32))
        outputs.append(opset13.matmul(inputs[-1], constant, False, True))
    return openvino.Model(outputs, inputs, "products")
