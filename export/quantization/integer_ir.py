"""Integers chosen beforehand put into an IR, in the form that NNCF writes, so that any OpenVINO runs it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from export.packing.linear_graph import module_path
from export.packing.stored_weight import decompressed
from shearling.errors import ModelUnsupported
from shearling.kernel.packed_format import Matrix


def place_in_ir(ir: Any, matrices: Mapping[str, Matrix]) -> None:
    """Replace float weights by integers and scales, in place.

    Args:
        ir: an `openvino.Model` with float weights.
        matrices: module path -> its weight; one object under two paths is one constant of the graph.

    Raises:
        ModelUnsupported: the graph has no product with one of the weights as [out, in], and no lookup of its rows.
    """
    missing = dict(matrices)
    for constant in ir.get_ordered_ops():
        matrix = missing.get(module_path(constant.get_friendly_name()))
        if matrix is None or constant.get_type_name() != "Constant" or tuple(constant.shape) != matrix.values.shape:
            continue
        readers = list(_readers(constant))
        if not readers or not all(_reads_rows(reader) for reader in readers):
            continue
        weight = decompressed(constant.get_friendly_name(), matrix)
        for reader in readers:
            reader.replace_source_output(weight)
        missing = {path: other for path, other in missing.items() if other is not matrix}
    if missing:
        raise ModelUnsupported(
            f"OpenVINO's graph has no product with the weight of {next(iter(missing))}",
            where="--quantization",
            remedy="Use --quantization fast",
        )
    ir.validate_nodes_and_infer_types()


def _readers(constant: Any) -> Iterator[Any]:
    """Inputs that read it, be it through a conversion."""
    for reader in constant.output(0).get_target_inputs():
        if reader.get_node().get_type_name() == "Convert":
            yield from reader.get_node().output(0).get_target_inputs()
        else:
            yield reader


def _reads_rows(reader: Any) -> bool:
    """Whether it is a product with the rows of the weight, or a lookup of them."""
    node = reader.get_node()
    if node.get_type_name() == "MatMul":
        return bool(reader.get_index() == 1 and node.get_attributes()["transpose_b"])
    return bool(node.get_type_name() == "Gather" and reader.get_index() == 0)
