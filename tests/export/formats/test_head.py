"""Which product of a graph is its head, and what becomes of it: small graphs, each with one thing that matters."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset1
from openvino import opset13 as op

from export.packing.linear_graph import find_head, find_products
from export.packing.packed_ir import pack_ir
from shearling.kernel.openvino_extension import core_for

VOCABULARY, HIDDEN = 40, 32


def weight(*, zeros: float = 0.0) -> Any:
    """An int8 weight as NNCF leaves it, decompressed to f32."""
    generator = np.random.default_rng(0)
    values = generator.integers(1, 100, (VOCABULARY, HIDDEN)).astype(np.int8)
    values[generator.random(values.shape) < zeros] = 0
    constant = op.constant(values)
    constant.set_friendly_name("lm_head.weight")
    scaled = op.multiply(op.convert(constant, "f16"), op.constant(np.full((VOCABULARY, 1), 0.01, np.float16)))
    return op.convert(scaled, "f32")


def graph(build: Any, *, zeros: float = 0.0) -> ov.Model:
    """A model whose results `build` makes of hidden states and the weight."""
    hidden, ids = op.parameter([1, -1, HIDDEN], np.float32), op.parameter([1, -1], np.int64)
    results = build(hidden, weight(zeros=zeros), ids)
    return ov.Model([op.result(result) for result in results], [hidden, ids])


def product(hidden: Any, matrix: Any) -> Any:
    return op.matmul(hidden, matrix, False, True)


def gather(matrix: Any, ids: Any, *, axis: int = 0, batch_dims: int = 0) -> Any:
    return op.gather(matrix, ids, np.int32(axis), batch_dims)


HEADS = {
    "untied": (lambda h, w, ids: [product(h, w)], 0),
    "tied": (lambda h, w, ids: [product(h, w), gather(w, ids)], 1),
    "tied, by the first Gather": (lambda h, w, ids: [product(h, w), opset1.gather(w, ids, np.int64(0))], 1),
    "tied twice": (lambda h, w, ids: [product(h, w), gather(w, ids), gather(w, op.convert(ids, "i32"))], 2),
}
OTHERS = {
    "a bias": lambda h, w, ids: [op.add(product(h, w), np.ones(VOCABULARY, np.float32))],
    "a scale": lambda h, w, ids: [op.multiply(product(h, w), np.float32(0.5))],
    "a transposed operand": lambda h, w, ids: [
        product(op.transpose(op.reshape(h, np.array([1, HIDDEN, -1]), False), np.array([0, 2, 1])), w)
    ],
    "not the first result": lambda h, w, ids: [op.relu(h), product(h, w)],
    "read twice": lambda h, w, ids: [y := product(h, w), op.relu(y)],
    "a weight that is read as numbers": lambda h, w, ids: [product(h, w), op.reduce_sum(w, np.array([0]))],
    "columns looked up": lambda h, w, ids: [product(h, w), gather(w, ids, axis=1)],
    "the weight as an index": lambda h, w, ids: [
        product(h, w),
        op.gather(op.constant(np.ones(9, np.float32)), op.convert(w, "i32"), np.int32(0)),
    ],
}


def head_of(ir: ov.Model) -> Any:
    return find_head(ir, find_products(ir))


@pytest.mark.parametrize("name", HEADS)
def test_a_head_is_found_with_its_lookups(name: str) -> None:
    build, lookups = HEADS[name]
    head = head_of(graph(build))
    assert head.product.shape == (VOCABULARY, HIDDEN)
    assert len(head.lookups) == lookups


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_more_than_a_head_is_left_alone(name: str) -> None:
    assert head_of(graph(OTHERS[name])) is None


@pytest.mark.parametrize("name", [*HEADS, "a bias"])
@pytest.mark.parametrize("zeros", [0.0, 0.8])
def test_the_packed_graph_computes_the_same(name: str, zeros: float, tmp_path: Any) -> None:
    build = HEADS[name][0] if name in HEADS else OTHERS[name]
    stock, packed = graph(build, zeros=zeros), graph(build, zeros=zeros)
    report = pack_ir(packed)
    # A head alone is packed for its zeros, and with a bias as any other product; without zeros it stays.
    assert {layer.operator for layer in report.layers} == (
        set() if not zeros else {"SparseHead"} if name in HEADS else {"SparseLinear"}
    )
    assert len(report.kept) == (0 if zeros else 1)
    ov.save_model(packed, tmp_path / "model.xml", compress_to_fp16=False)
    generator = np.random.default_rng(1)
    inputs = [generator.standard_normal((1, 3, HIDDEN)).astype(np.float32), generator.integers(0, HIDDEN, (1, 5))]
    found, expected = (
        core_for(tmp_path / "model.xml").compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(inputs)
        for model in (core_for(tmp_path / "model.xml").read_model(tmp_path / "model.xml"), stock)
    )
    for left, right in zip(found.values(), expected.values(), strict=True):
        assert np.abs(left - right).max() <= 3e-2 * np.abs(right).max()
