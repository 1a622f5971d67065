"""int8 of an IR: what NNCF's compiled kernels make, and when they are compiled."""

import os

import numpy as np
import openvino as ov
import pytest
from openvino import opset13

from export.number_formats import int8
from export.number_formats.int8 import UNCOMPILED, store_openvino


def float_ir(rows: int = 192, columns: int = 160) -> ov.Model:
    """A product with a matrix of more weights than NNCF leaves to NumPy anyhow, which has zeros."""
    random = np.random.default_rng(0)
    weight = random.normal(size=(rows, columns)).astype(np.float32) * (random.random((rows, columns)) < 0.5)
    x = opset13.parameter([-1, columns], np.float32, name="x")
    product = opset13.matmul(x, opset13.constant(weight), transpose_a=False, transpose_b=True, name="product")
    return ov.Model([opset13.result(product)], [x])


def constants(ir: ov.Model) -> list[tuple[str, bytes]]:
    found = [node for node in ir.get_ordered_ops() if node.get_type_name() == "Constant"]
    return [(node.get_element_type().get_type_name(), node.data.tobytes()) for node in found]


@pytest.mark.parametrize(("limit", "compiles"), [(192 * 160, True), (192 * 160 + 1, False)])
def test_small_matrices_are_rounded_to_the_same_bits_without_a_compilation(limit, compiles, monkeypatch):
    import nncf.openvino.optimized_functions.models as kernels

    compiled = []
    compile_model = kernels._compile_ov_model
    monkeypatch.setattr(kernels, "_compile_ov_model", lambda *a, **k: compiled.append(1) or compile_model(*a, **k))
    monkeypatch.setattr(int8, "COMPILED_FROM", 0)
    expected = constants(store_openvino(float_ir()).ir)
    assert compiled
    assert any(kind == "i8" for kind, _ in expected)
    compiled.clear()
    monkeypatch.setattr(int8, "COMPILED_FROM", limit)
    assert constants(store_openvino(float_ir()).ir) == expected
    assert bool(compiled) == compiles


@pytest.mark.parametrize("before", [None, "0"])
def test_the_environment_stays_as_it_was(before, monkeypatch):
    monkeypatch.delenv(UNCOMPILED, raising=False)
    if before is not None:
        monkeypatch.setenv(UNCOMPILED, before)
    store_openvino(float_ir())
    assert os.environ.get(UNCOMPILED) == before
