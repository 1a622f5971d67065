"""int8: symmetric, so that zero is the integer zero; one scale a row in OpenVINO, one a block in ONNX."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from typing import Any

from export.number_formats.compressed_ir import compress, load_nncf
from export.number_formats.number_format import StoredIr
from export.number_formats.onnx_graph import quantize_blocks

BLOCK = 128
"""Weights along the input that share a scale in ONNX."""

COMPILED_FROM = 2**21
"""Weights of a matrix from which a kernel that NNCF compiles for it alone pays for its 25 to 40 ms."""
UNCOMPILED = "NNCF_DISABLE_OPTIMIZED_COMPRESSION"
"""Environment variable of NNCF: matrices are rounded by NumPy, to the same bits."""


def store_openvino(ir: Any) -> StoredIr:
    """Quantize every weight matrix through NNCF, embeddings included."""
    nncf = load_nncf()
    with _uncompiled() if _has_small_matrices(ir) else contextlib.nullcontext():
        return StoredIr(compress(ir, mode=nncf.CompressWeightsMode.INT8_SYM))


def store_onnx(model: Any, linears: Collection[str]) -> None:
    """Quantize the linears to MatMulNBits; embeddings and head stay float32."""
    quantize_blocks(model, linears, bits=8, block=BLOCK)


def round_products(ir: Any) -> Any:
    """Quantize every matrix through NNCF, as `store_openvino` does."""
    return store_openvino(ir).ir


def _has_small_matrices(ir: Any) -> bool:
    """Whether they hold most of the weights."""
    constants = (node.get_output_shape(0) for node in ir.get_ops() if node.get_type_name() == "Constant")
    sizes = [shape[0] * shape[1] for shape in constants if len(shape) == 2]
    return sum(size for size in sizes if size < COMPILED_FROM) > sum(sizes) / 2


@contextlib.contextmanager
def _uncompiled() -> Iterator[None]:
    before = os.environ.get(UNCOMPILED)
    os.environ[UNCOMPILED] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[UNCOMPILED]
        else:
            os.environ[UNCOMPILED] = before
