"""Projections that a model computes in one product and then cuts apart: queries, keys and values of Phi 3, gate and up
of Phi 3 and GLM. Each becomes a product of its own, so that a layer is like any other's.

The rows of a product do not depend on each other, so no number changes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from export.packing.linear_graph import Product, find_products, source
from export.packing.stored_weight import decompressed, read_matrix
from shearling.kernel.packed_format import Matrix

ROWS = ".rows_"
"""Between the name of a weight and the rows of a part of it: `qkv_proj.rows_0_64`."""


@dataclass(frozen=True)
class _Part:
    """What reads some rows of a product.

    Attributes:
        output: of the node that cuts them out.
    """

    first: int
    last: int
    output: Any


def split_joined(ir: Any) -> None:
    """Cut every product apart whose output is cut into parts, which make the whole together; in place.

    Args:
        ir: an `openvino.Model` with bf16, int8 or int4 weights.
    """
    for product in find_products(ir):
        parts = [] if product.shared else _parts(product)
        if len(parts) > 1:
            _split(product, parts)


def part_of(name: str, first: int, last: int) -> str:
    """Name of the rows [first, last) of a weight constant."""
    whole, weight, ending = name.rpartition(".weight")
    return f"{whole}{ROWS}{first}_{last}{weight}{ending}"


def join_parts(matrices: dict[str, Matrix]) -> dict[str, Matrix]:
    """Name -> matrix with the parts of a weight put together again.

    Args:
        matrices: by the names of their constants; parts of one weight in any order.
    """
    import numpy as np

    joined: dict[str, dict[int, Matrix]] = {}
    for name, matrix in matrices.items():
        whole, _, rest = name.rpartition(ROWS)
        rows, _, ending = rest.partition(".")
        place, first = (f"{whole}.{ending}", int(rows.partition("_")[0])) if whole else (name, 0)
        joined.setdefault(place, {})[first] = matrix
    found = {}
    for name, parts in joined.items():
        ordered = [parts[first] for first in sorted(parts)]
        values = np.concatenate([part.values for part in ordered])
        scales = None if ordered[0].scales is None else np.concatenate([part.scales for part in ordered])
        found[name] = replace(ordered[0], values=values, scales=scales)
    return found


def _parts(product: Product) -> list[_Part]:
    """The parts in order; none where the output is read in another way."""
    found: list[_Part] = []
    for reader in _readers(product.matmul):
        if reader.get_type_name() == "Slice":
            found += _sliced(reader, product.shape[0])
        elif reader.get_type_name() == "VariadicSplit" and source(reader, 0) == product.matmul:
            found += _divided(reader)
        elif not _ends_in_division(reader):
            return []
    found.sort(key=lambda part: part.first)
    edges = [0, *(part.last for part in found)]
    whole = [part.first for part in found] == edges[:-1] and edges[-1] == product.shape[0]
    return found if whole else []


def _readers(node: Any) -> list[Any]:
    return [reader.get_node() for output in node.outputs() for reader in output.get_target_inputs()]


def _ends_in_division(node: Any) -> bool:
    """Whether a shape serves nothing but the sizes of the parts."""
    if node.get_type_name() == "VariadicSplit":
        return True
    readers = _readers(node)
    return node.get_type_name() not in ("Slice", "Result") and bool(readers) and all(map(_ends_in_division, readers))


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


def _split(product: Product, parts: list[_Part]) -> None:
    from openvino import opset13

    matrix, name = read_matrix(product), product.constant.get_friendly_name()
    x = product.matmul.input_value(0)
    for part in parts:
        rows = slice(part.first, part.last)
        scales = None if matrix.scales is None else matrix.scales[rows]
        path = part_of(name, part.first, part.last)
        weight = decompressed(path, replace(matrix, values=matrix.values[rows], scales=scales))
        matmul = opset13.matmul(x, weight, transpose_a=False, transpose_b=True)
        matmul.set_friendly_name(f"{product.matmul.get_friendly_name()}{ROWS}{part.first}_{part.last}")
        for reader in part.output.get_target_inputs():
            reader.replace_source_output(matmul.output(0))
    # What nobody reads any more reads nothing either, so that it does not count among the readers of x.
    product.matmul.input(0).replace_source_output(opset13.constant(0.0).output(0))
