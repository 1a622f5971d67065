"""Integers in a graph of ONNX: every product of a layer, however often the model applies it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.number_formats.onnx_graph import quantize_blocks

WIDTH = 128


def chain(weights: list[str], *, by_gemm: bool = False) -> onnx_ir.Model:
    """x -> x W' -> x W' V' ..., as it is traced: a transposition before every product."""
    random = np.random.default_rng(0)
    nodes, x = [], "x"
    for place, name in enumerate(weights):
        if by_gemm:
            nodes.append(helper.make_node("Gemm", [x, name], [f"y{place}"], transB=1))
        else:
            nodes.append(helper.make_node("Transpose", [name], [f"t{place}"], perm=[1, 0]))
            nodes.append(helper.make_node("MatMul", [x, f"t{place}"], [f"y{place}"], name=f"product{place}"))
        x = f"y{place}"
    tensors = [
        numpy_helper.from_array((random.standard_normal((WIDTH, WIDTH)) / 11).astype(np.float32), name)
        for name in dict.fromkeys(weights)
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3, WIDTH]) for name in ("x", x)]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], tensors)
    return onnx_ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


def run(model: onnx_ir.Model, path: Path, x: np.ndarray) -> np.ndarray:
    onnx.save(onnx_ir.to_proto(model), path)
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def test_a_layer_that_is_applied_again_and_again_is_quantized_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = ["shared", "own", "shared", "shared"]
    x = np.random.default_rng(1).standard_normal((3, WIDTH)).astype(np.float32)
    model = chain(weights)
    expected = run(chain(weights), tmp_path / "float.onnx", x)
    quantize_blocks(model, {"shared", "own"}, bits=8, block=128)
    assert [node.op_type for node in model.graph] == ["MatMulNBits"] * 4
    assert len(model.graph.initializers) == 4, "integers and scales of two layers"
    got = run(model, tmp_path / "int8.onnx", x)
    assert np.abs(got - expected).max() < 0.05 * np.abs(expected).max()
    assert "floating point" not in capsys.readouterr().err


def test_what_stays_in_floating_point_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    quantize_blocks(chain(["one", "other"], by_gemm=True), {"one", "other"}, bits=8, block=128)
    assert "2 of 2 layers stay in floating point, such as that of one" in capsys.readouterr().err
