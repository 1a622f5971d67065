"""Integers chosen beforehand put into an IR, in the form that NNCF writes, so that any OpenVINO runs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from export.packing.linear_graph import module_path, source
from export.packing.stored_weight import decompressed
from shearling.errors import ModelUnsupported
from shearling.kernel.packed_format import Matrix


def place_in_ir(ir: Any, matrices: Mapping[str, Matrix]) -> None:
    """Replace float weights by integers and scales, in place.

    Args:
        ir: an `openvino.Model` with float weights.
        matrices: module path -> its weight.

    Raises:
        ModelUnsupported: the graph has no product with one of the weights as [out, in].
    """
    missing = dict(matrices)
    for node in ir.get_ordered_ops():
        if node.get_type_name() != "MatMul" or not node.get_attributes()["transpose_b"]:
            continue
        constant = source(node, 1)
        if constant.get_type_name() == "Convert":
            constant = source(constant, 0)
        path = module_path(constant.get_friendly_name())
        matrix = missing.get(path)
        if constant.get_type_name() != "Constant" or matrix is None:
            continue
        if tuple(constant.shape) == matrix.values.shape:
            del missing[path]
            node.input(1).replace_source_output(decompressed(constant.get_friendly_name(), matrix))
    if missing:
        raise ModelUnsupported(
            f"OpenVINO's graph has no product with the weight of {next(iter(missing))}",
            where="--quantization",
            remedy="Use --quantization fast",
        )
    ir.validate_nodes_and_infer_types()
