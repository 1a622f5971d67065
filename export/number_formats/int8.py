"""int8: symmetric, so that zero is the integer zero; one scale a row in OpenVINO, one a block in ONNX."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from export.number_formats.compressed_ir import compress, load_nncf
from export.number_formats.number_format import StoredIr
from export.number_formats.onnx_graph import quantize_blocks

BLOCK = 128
"""Weights along the input that share a scale in ONNX."""


def store_openvino(ir: Any) -> StoredIr:
    """Quantize every weight matrix through NNCF, embeddings included."""
    nncf = load_nncf()
    return StoredIr(compress(ir, mode=nncf.CompressWeightsMode.INT8_SYM))


def store_onnx(model: Any, linears: Collection[str]) -> None:
    """Quantize the linears to MatMulNBits; embeddings and head stay float32."""
    quantize_blocks(model, linears, bits=8, block=BLOCK)


def round_products(ir: Any) -> Any:
    """Quantize every matrix through NNCF, as `store_openvino` does."""
    return store_openvino(ir).ir
