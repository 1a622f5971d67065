"""Integers in a graph of ONNX: every product of a layer, however often the model applies it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from export.formats.onnx import TracedModel, as_products, trace
from export.number_formats.onnx_graph import quantize_blocks
from shearling.registry.number_formats import NUMBER_FORMATS

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


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("number_format", ["int8", "int4"])
def test_linears_of_flat_inputs_are_quantized_like_the_others(
    number_format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of experts see tokens, [tokens, width], and with a bias one product and a sum."""
    torch.manual_seed(0)
    model: Any = FlatLinears().eval()
    graph = trace(
        TracedFlat(model),
        {"x": torch.randn(2, 3, WIDTH)},
        shapes={"x": {0: "batch", 1: "sequence"}},
        inputs=["x"],
        outputs=["y"],
    )
    as_products(graph.model.graph)
    assert "Gemm" not in {node.op_type for node in graph.model.graph}
    x = torch.randn(4, 5, WIDTH)
    expected = model(x).detach().numpy()
    graph.save(tmp_path / "float.onnx")
    assert np.abs(infer(tmp_path / "float.onnx", x) - expected).max() < 1e-5
    names = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    NUMBER_FORMATS.get(number_format).load_for("onnx")(graph.model, names)
    assert [node.op_type for node in graph.model.graph].count("MatMulNBits") == 3
    assert "floating point" not in capsys.readouterr().err
    graph.save(tmp_path / "stored.onnx")
    tolerance = 0.02 if number_format == "int8" else 0.3
    assert np.abs(infer(tmp_path / "stored.onnx", x) - expected).max() < tolerance * np.abs(expected).max()


class FlatLinears(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expert, self.biased = (torch.nn.Linear(WIDTH, WIDTH, bias=bias) for bias in (False, True))
        self.usual = torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.reshape(-1, WIDTH)
        return self.usual(x) + self.biased(self.expert(tokens)).reshape(x.shape)


class TracedFlat(TracedModel):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As its model."""
        return self.model(x)


def infer(path: Path, x: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x.numpy()})[0]
