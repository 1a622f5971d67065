"""What stores weights in a number format, one function for each export format that has it.

    openvino    store(ir: openvino.Model) -> StoredIr
    onnx        store(model: onnx_ir.Model, linears: Collection[str]) -> None
    onnx-genai  round(ir: openvino.Model) -> openvino.Model

Each is given a float32 graph, may consume it, and must keep every zero exactly zero. In ONNX the linears are
MatMul(x, Transpose(W)) with W [out, in] an initializer, and `linears` names the weights that may be quantized.
For onnx-genai the IR is products alone, y = x Wᵀ, whose integers are read and put into another graph; a format of
floats leaves it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

LOW_RANK = ("lora_a", "lora_b")
"""Last path component of the factors that a `separate` export keeps beside the weight; they are never quantized."""


@dataclass(frozen=True)
class StoredIr:
    """An IR whose weights have their format.

    Attributes:
        ir: an `openvino.Model`.
        halve_on_save: whether OpenVINO is to store float32 constants as float16 when it saves.
    """

    ir: Any
    halve_on_save: bool = False


StoreIr = Callable[[Any], StoredIr]
StoreGraph = Callable[[Any, Collection[str]], None]
