"""int4: symmetric, so that zero is the integer zero, in groups along the input that share a scale."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from export.number_formats.compressed_ir import compress, load_nncf
from export.number_formats.number_format import StoredIr
from export.number_formats.onnx_graph import quantize_blocks

GROUP = 128
"""Weights that share a scale in OpenVINO, where the width of the layer allows it."""
BLOCK = 32
"""Weights that share a scale in ONNX."""


def store_openvino(ir: Any) -> StoredIr:
    """Quantize the decoder layers through NNCF in groups, and the rest to int8."""
    return StoredIr(quantize_groups(ir))


def store_onnx(model: Any, linears: Collection[str]) -> None:
    """Quantize the linears to MatMulNBits; embeddings and head stay float32."""
    quantize_blocks(model, linears, bits=4, block=BLOCK)


def round_products(ir: Any) -> Any:
    """Quantize every matrix through NNCF in groups, as `store_openvino` does those of the decoder layers."""
    return quantize_groups(ir, all_layers=True)


def quantize_groups(
    ir: Any, *, group_size: int = GROUP, all_layers: bool = False, ratio: float = 1.0, **calibration: Any
) -> Any:
    """Quantize matrices through NNCF: to the nearest, where it is given no text.

    Args:
        ir: an `openvino.Model` with float weights; consumed.
        group_size: weights that share a scale.
        all_layers: the embedding and the head, too, which have eight bits otherwise.
        ratio: share of the other weights in four bits; those that NNCF spares have eight.
        calibration: `dataset`, and what `nncf.compress_weights` is to do with it.
    """
    nncf = load_nncf()
    # A width that 128 does not divide takes the largest smaller power of two that does; below 16 it stays int8.
    advanced = nncf.AdvancedCompressionParameters(
        group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST, min_adjusted_group_size=16
    )
    return compress(
        ir,
        mode=nncf.CompressWeightsMode.INT4_SYM,
        advanced_parameters=advanced,
        group_size=group_size,
        ratio=ratio,
        backup_mode=nncf.BackupMode.INT8_SYM,
        **({"all_layers": True} if all_layers else {}),
        **calibration,
    )
