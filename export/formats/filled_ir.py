"""An IR that was converted without its large weights, given them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from export.formats.hollow import Weights, as_float32

PREFIX = "self."
"""Before torch's names, in those of OpenVINO's constants."""


def empty_ir(ir: Any, weights: Weights) -> None:
    """Make all weights that are left out zeros, which a file holds once for each size, in place."""
    import openvino

    for constant in ir.get_ordered_ops():
        if constant.get_type_name() == "Constant" and constant.get_friendly_name().removeprefix(PREFIX) in weights:
            zeros = np.zeros(tuple(constant.shape), np.float32)
            _put_in_place(constant, openvino.op.Constant(zeros, shared_memory=True))


def fill_ir(ir: Any, weights: Weights, *, halved: bool) -> bool:
    """Put each weight where the converter put its stand-in, in place; as a view where its type allows it.

    Args:
        ir: an `openvino.Model`, of which no two weights are one constant but those that are tied.
        weights: that were left out.
        halved: keep weights of bfloat16 as they are, with a conversion behind them; else all are float32.

    Returns:
        False where the graph lacks the place of a weight; the IR is of no use then.
    """
    missing = dict(weights)
    for constant in ir.get_ordered_ops():
        if constant.get_type_name() != "Constant":
            continue
        weight = weights.get(constant.get_friendly_name().removeprefix(PREFIX))
        if weight is None:
            continue
        if tuple(constant.shape) != tuple(weight.shape):
            return False
        _replace(constant, weight, halved=halved)
        missing = {name: other for name, other in missing.items() if other.data_ptr() != weight.data_ptr()}
    ir.validate_nodes_and_infer_types()
    return not missing


def _replace(constant: Any, weight: Tensor, *, halved: bool) -> None:
    import openvino
    from openvino import opset13

    if halved and weight.dtype == torch.bfloat16:
        # The form of `export.number_formats.bfloat16`.
        bits = np.ascontiguousarray(weight.detach().contiguous().view(torch.uint16).numpy())
        tensor = openvino.Tensor(bits, openvino.Shape(list(weight.shape)), openvino.Type.bf16)
        stored = openvino.op.Constant(tensor, shared_memory=True)
        stored.set_friendly_name(f"{constant.get_friendly_name()}_compressed")
        _put_in_place(constant, opset13.convert(stored, openvino.Type.f32))
    else:
        _put_in_place(constant, openvino.op.Constant(as_float32(weight), shared_memory=True))


def _put_in_place(constant: Any, node: Any) -> None:
    for reader in constant.output(0).get_target_inputs():
        reader.replace_source_output(node.output(0))
    node.set_friendly_name(constant.get_friendly_name())
    node.output(0).get_tensor().set_names(constant.output(0).get_names())
