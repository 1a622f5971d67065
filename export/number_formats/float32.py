"""fp32: the weights stay as they are."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from export.number_formats.number_format import StoredIr


def store_openvino(ir: Any) -> StoredIr:
    """The IR as it is."""
    return StoredIr(ir)


def store_onnx(model: Any, linears: Collection[str]) -> None:
    """Leave the graph as it is."""


def round_products(ir: Any) -> Any:
    """Leave the products as they are."""
    return ir
