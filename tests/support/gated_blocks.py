"""Gated feed-forward blocks, in a graph of one behind an embedding, and in a decoder.

On processors with AMX OpenVINO fuses some of them, and dies of these with one thread.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
from openvino import opset13 as op

from tests.support.deployments import write_openvino
from tests.support.once_per_run import once_per_run
from tests.support.tiny_models import wide_model

VOCABULARY, POSITIONS = 400, 64


def write_gated_block(
    directory: Path,
    *,
    width: int = 64,
    inner: int = 96,
    activation: str = "gelu",
    stored: str = "f32",
    joined: bool = False,
) -> Path:
    """An IR with its config.json, as `serve forward` takes it; gives the .xml.

    Args:
        directory: made where it is not there.
        width: of the embedding.
        inner: of the block.
        activation: gelu, swish, x*sigmoid, relu, or none, where nothing is gated.
        stored: of the weights: f32, f16, bf16 or i8.
        joined: gate and up are one product, whose result is split.
    """
    directory.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)

    def product(value: Any, rows: int, columns: int) -> Any:
        return op.matmul(value, _weights(generator, rows, columns, stored), False, True)

    ids = op.parameter([-1, -1], np.int64, "input_ids")
    ids.get_output_tensor(0).set_names({"input_ids"})
    table = op.constant(generator.standard_normal((VOCABULARY, width), np.float32))
    read = op.gather(table, ids, 0)
    if joined:
        gate, up = op.split(product(read, 2 * inner, width), 2, 2).outputs()
    else:
        gate, up = product(read, inner, width), product(read, inner, width)
    gated = _activated(gate, activation) if activation == "none" else op.multiply(_activated(gate, activation), up)
    model = openvino.Model([op.reduce_mean(product(gated, width, inner), 1)], [ids], "gated")
    openvino.save_model(model, directory / "openvino_model.xml", compress_to_fp16=False)
    config = {"max_position_embeddings": POSITIONS, "vocab_size": VOCABULARY}
    (directory / "config.json").write_text(json.dumps(config))
    return directory / "openvino_model.xml"


def gated_decoder(factory: pytest.TempPathFactory) -> Path:
    """A directory for GenAI with such blocks in float32, once for all tests of a run; none may change it."""
    return (
        once_per_run(factory, "gated", lambda directory: write_openvino(wide_model(), directory / "openvino"))
        / "openvino"
    )


def _weights(generator: np.random.Generator, rows: int, columns: int, stored: str) -> Any:
    values = 0.1 * generator.standard_normal((rows, columns), np.float32)
    if stored == "f32":
        return op.constant(values)
    if stored == "i8":
        scale = np.abs(values).max(axis=1, keepdims=True) / 127
        integers = op.convert(op.constant(np.round(values / scale).astype(np.int8)), "f32")
        return op.multiply(integers, op.constant(scale))
    return op.convert(op.constant(values, dtype=getattr(openvino.Type, stored)), "f32")


def _activated(value: Any, activation: str) -> Any:
    if activation == "relu":
        return op.relu(value)
    if activation == "swish":
        return op.swish(value)
    if activation == "x*sigmoid":
        return op.multiply(value, op.sigmoid(value))
    return op.gelu(value, "tanh")
