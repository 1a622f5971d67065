"""Projections that a model computes in one product and then cuts apart: queries, keys and values of Phi 3, gate and up
of Phi 3 and GLM. Each becomes a product of its own, so that a layer is like any other's.

The rows of a product do not depend on each other, so no number changes.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from export.packing.linear_graph import Product, find_products, source
from export.packing.stored_weight import decompressed, read_matrix
from shearling.errors import ArtefactCorrupt
from shearling.kernel.packed_format import Matrix

ROWS = ".rows_"
"""Between the name of a weight and the rows of a part of it: `qkv_proj.rows_0_64`."""
PART = re.compile(r"(?P<whole>.+)\.rows_(?P<first>\d+)_(?P<last>\d+)(?P<ending>\.weight.*)")


@dataclass(frozen=True)
class _Part:
    """What reads some rows of a product.

    Attributes:
        output: of the node that cuts them out.
    """

    first: int
    last: int
    output: Any


@dataclass(frozen=True)
class JoinedProduct:
    """One product that is several projections.

    Attributes:
        parts: of its output, in order; together they are the whole.
    """

    product: Product
    parts: list[_Part]


def find_joined(ir: Any, *, kept: Collection[str] = ()) -> list[JoinedProduct]:
    """Every product whose output is cut into parts, which make the whole together.

    Args:
        ir: an `openvino.Model` with bf16, int8 or int4 weights.
        kept: paths of weights that shall stay as they are.
    """
    products = (product for product in find_products(ir) if not product.shared and product.path not in kept)
    found = [joined for joined in (JoinedProduct(item, _parts(item)) for item in products) if len(joined.parts) > 1]
    while True:
        # Shapes of one product may size the parts of others: those of all layers are equal.
        names = {joined.product.matmul.get_friendly_name() for joined in found}
        fit = [joined for joined in found if _shape_serves_alone(joined.product.matmul, names)]
        if len(fit) == len(found):
            return found
        found = fit


def split_joined(joined: list[JoinedProduct]) -> None:
    """Make products of the parts, in place.

    Args:
        joined: of an IR; empty at the end, so that no weight is held twice for long.
    """
    while joined:
        _split(joined.pop())


def part_of(name: str, first: int, last: int) -> str:
    """Name of the rows [first, last) of a weight constant."""
    whole, weight, ending = name.rpartition(".weight")
    return f"{whole}{ROWS}{first}_{last}{weight}{ending}"


def join_parts(matrices: dict[str, Matrix]) -> dict[str, Matrix]:
    """Name -> matrix with the parts of a weight put together again.

    Args:
        matrices: by the names of their constants; parts of one weight in any order.

    Raises:
        ArtefactCorrupt: parts do not follow each other.
    """
    joined: dict[str, dict[tuple[int, int], Matrix]] = {}
    for name, matrix in matrices.items():
        part = PART.fullmatch(name)
        place = name if part is None else f"{part['whole']}{part['ending']}"
        rows = (0, len(matrix.values)) if part is None else (int(part["first"]), int(part["last"]))
        joined.setdefault(place, {})[rows] = matrix
    found = {}
    for name, parts in joined.items():
        ordered = sorted(parts.items(), key=lambda item: item[0])
        edges = [0, *(last for (_, last), _ in ordered)]
        if [(first, first + len(part.values)) for (first, _), part in ordered] != list(itertools.pairwise(edges)):
            raise ArtefactCorrupt("parts of a weight do not follow each other", where=name, remedy="Export again")
        values = np.concatenate([part.values for _, part in ordered])
        scales = [part.scales for _, part in ordered if part.scales is not None]
        found[name] = replace(ordered[0][1], values=values, scales=np.concatenate(scales) if scales else None)
    return found


def _parts(product: Product) -> list[_Part]:
    """The parts in order; none where the output is read in another way."""
    if product.matmul.get_output_partial_shape(0).rank.is_dynamic:
        return []
    found: list[_Part] = []
    for reader in _readers(product.matmul):
        if reader.get_type_name() == "Slice":
            parts = _sliced(reader, product.shape[0])
        elif reader.get_type_name() == "VariadicSplit" and source(reader, 0) == product.matmul:
            parts = _divided(reader)
        elif reader.get_type_name() == "ShapeOf":
            continue
        else:
            return []
        if not parts:
            return []
        found += parts
    found.sort(key=lambda part: part.first)
    edges = [0, *(part.last for part in found)]
    whole = [part.first for part in found] == edges[:-1] and edges[-1] == product.shape[0]
    return found if whole else []


def _readers(node: Any) -> list[Any]:
    return [reader.get_node() for output in node.outputs() for reader in output.get_target_inputs()]


def _shape_serves_alone(matmul: Any, divided: Collection[str]) -> bool:
    """Whether the shape of a product serves nothing but the sizes of the parts that these products are divided into."""
    return all(_sizes_parts(reader, divided) for reader in _readers(matmul) if reader.get_type_name() == "ShapeOf")


def _sizes_parts(node: Any, divided: Collection[str]) -> bool:
    inputs = [reader for output in node.outputs() for reader in output.get_target_inputs()]
    return bool(inputs) and all(
        (reader.get_index() > 0 and source(reader.get_node(), 0).get_friendly_name() in divided)
        if reader.get_node().get_type_name() == "VariadicSplit"
        else reader.get_node().get_type_name() != "Result" and _sizes_parts(reader.get_node(), divided)
        for reader in inputs
    )


def _sliced(node: Any, rows: int) -> list[_Part]:
    limits = [source(node, port) for port in range(1, len(node.inputs()))]
    if len(limits) != 4 or any(limit.get_type_name() != "Constant" or limit.data.size != 1 for limit in limits):
        return []
    first, last, step, axis = (int(limit.data.reshape(())) for limit in limits)
    rank = len(node.get_output_partial_shape(0))
    if step != 1 or axis not in (-1, rank - 1) or first < 0 or last < 0:
        return []
    return [_Part(first, min(last, rows), node.output(0))]


def _divided(node: Any) -> list[_Part]:
    axis = source(node, 1)
    rank = len(node.get_output_partial_shape(0))
    sizes = [output.get_partial_shape()[rank - 1] for output in node.outputs()]
    if axis.get_type_name() != "Constant" or int(axis.data.reshape(())) not in (-1, rank - 1):
        return []
    if not all(size.is_static for size in sizes):
        return []
    found, first = [], 0
    for size, output in zip(sizes, node.outputs(), strict=True):
        found.append(_Part(first, first + size.get_length(), output))
        first += size.get_length()
    return found


def _split(joined: JoinedProduct) -> None:
    from openvino import opset13

    product = joined.product
    matrix, name = read_matrix(product), product.constant.get_friendly_name()
    x = product.matmul.input_value(0)
    for part in joined.parts:
        rows = slice(part.first, part.last)
        scales = None if matrix.scales is None else matrix.scales[rows]
        path = part_of(name, part.first, part.last)
        weight = decompressed(path, replace(matrix, values=matrix.values[rows], scales=scales))
        matmul = opset13.matmul(x, weight, transpose_a=False, transpose_b=True)
        matmul.set_friendly_name(f"{product.matmul.get_friendly_name()}{ROWS}{part.first}_{part.last}")
        names = part.output.get_names()
        for reader in part.output.get_target_inputs():
            reader.replace_source_output(matmul.output(0))
        matmul.output(0).get_tensor().set_names(names)
    # What nobody reads any more reads nothing either, so that it does not count among the readers of x.
    product.matmul.input(0).replace_source_output(opset13.constant(0.0).output(0))
