"""Graphs of which only the first layers are traced."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import onnxruntime
import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

import export.formats.onnx as onnx_format
from export.formats.classifier import trace_classifier
from export.formats.copied_layers import share_sizes
from export.formats.like_layers import plan_layers
from export.formats.onnx import trace_decoder, traced
from shearling.model.experts import separate_experts
from shearling.model.layers import find_layers
from tests.support.tiny_models import ENCODERS, FAMILIES, MIXTURES, build_tiny

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
SIZES = {"batch": 2, "sequence": 3, "past_sequence": 4, "total_sequence": 7}


@pytest.mark.parametrize(
    ("family", "layers", "first"),
    [
        ("bloom", 4, 2),
        ("bert", 4, 2),
        pytest.param("gemma3", 4, 3, marks=pytest.mark.slow),
        pytest.param("mixtral", 3, 2, marks=pytest.mark.slow),
    ],
)
def test_copies_compute_what_is_traced_bit_for_bit(
    family: str, layers: int, first: int, tmp_path: Path, traced_layers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every kind: with a cache and without, two kinds of layers, tokens that go to other experts."""
    model = deeper(family, layers)
    trace_model = trace_classifier if family in ENCODERS else trace_decoder
    copied = computed(traced(model, trace_model), tmp_path / "copied.onnx")
    assert traced_layers == [first]
    monkeypatch.setattr(onnx_format, "trace_like_layers", lambda model, trace_model: trace_model(model))
    whole = computed(traced(model, trace_model), tmp_path / "whole.onnx")
    assert traced_layers == [first, layers]
    assert list(copied) == list(whole)
    assert all(np.array_equal(value, whole[name]) for name, value in copied.items())
    assert len(find_layers(model).layers) == model.config.num_hidden_layers == layers


def test_every_copy_has_the_weights_of_its_layer() -> None:
    model = deeper("llama_tied_gqa", 4)
    stored = traced(model, trace_decoder).model.graph.initializers
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in stored:
            assert np.array_equal(stored[name].const_value.numpy(), parameter.detach().numpy()), name
    assert len([name for name in stored if name.startswith("model.layers.3.")]) == 9


def test_layers_whose_number_counts_are_traced_whole(tmp_path: Path, traced_layers: list[int]) -> None:
    """Nothing but the graph tells that they compute something else."""
    model = deeper("llama_tied_gqa", 3)
    layers = find_layers(model).layers
    kind = type("NumberedLayer", (type(layers[0]),), {"forward": _numbered_forward})
    for number, layer in enumerate(layers):
        layer.layer_idx, layer.__class__ = number, kind
    plan = plan_layers(model)
    assert plan is not None
    assert plan.traced == 2
    program = traced(model, trace_decoder)
    assert traced_layers == [2, 3]
    program.save(tmp_path / "numbered.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "numbered.onnx", providers=["CPUExecutionProvider"])
    feed = inputs_of(session)
    feed |= {name: value[:, :, :0] for name, value in feed.items() if name.startswith("past")}
    feed |= {"attention_mask": np.ones((2, 3), np.int64), "position_ids": np.arange(3)[None].repeat(2, 0)}
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(feed["input_ids"])).logits.numpy()
    assert np.abs(session.run(["logits"], feed)[0] - expected).max() < 1e-4


@pytest.mark.parametrize("change", ["width", "buffer", "attribute", "listed"])
def test_a_layer_of_another_kind_is_traced(change: str) -> None:
    """The last of five, so that there are never two of its kind."""
    model = deeper("llama_tied_gqa", 5)
    assert plan_layers(model) is not None
    last = find_layers(model).layers[-1]
    if change == "width":
        last.mlp.gate_proj, last.mlp.up_proj = (nn.Linear(60, 50, bias=False) for _ in range(2))
        last.mlp.down_proj = nn.Linear(50, 60, bias=False)
    elif change == "buffer":
        for number, layer in enumerate(find_layers(model).layers):
            layer.register_buffer("strength", torch.tensor(float(number == 4)))
    elif change == "attribute":
        last.self_attn.scaling *= 2
    else:
        model.config.kinds_of_layers = ["one"] * 4 + ["other"]
    assert plan_layers(model) is None


def test_layers_that_share_parameters_are_traced_whole() -> None:
    """The two that are traced share, and of those that follow one has its own: a copy would take the wrong weights."""
    model = deeper("llama_tied_gqa", 5)
    layers = find_layers(model).layers
    assert plan_layers(model) is not None
    layers[1].mlp = layers[0].mlp
    assert plan_layers(model) is None


@pytest.mark.parametrize("kept", [np.arange, lambda size: [torch.arange(size)]], ids=["array", "list of tensors"])
def test_what_cannot_be_compared_is_of_another_kind(kept: Callable[[int], Any]) -> None:
    model = deeper("llama_tied_gqa", 5)
    for layer in find_layers(model).layers:
        layer.self_attn.kept = kept(3)
    assert plan_layers(model) is None


def test_layers_with_an_empty_place_for_their_number_are_copied(traced_layers: list[int]) -> None:
    """As those of ESM and the MLPs of Hunyuan."""
    model = deeper("bert", 4)
    for layer in find_layers(model).layers:
        layer.layer_idx = None
    traced(model, trace_classifier)
    assert traced_layers == [2]
    assert [layer.layer_idx for layer in find_layers(model).layers] == [None] * 4


def test_sizes_without_a_name_stay_apart() -> None:
    """Two inputs whose sizes have no name may differ; those of one name are asked for once."""
    float32 = onnx_ir.TensorType(onnx_ir.DataType.FLOAT)
    shapes = {"named": ["batch"], "like": ["batch"], "nameless": [None], "other": [None]}
    inputs = [onnx_ir.Value(name=name, shape=onnx_ir.Shape(shape), type=float32) for name, shape in shapes.items()]
    nodes = [onnx_ir.node("Shape", [value], {"start": 0, "end": 1}) for value in inputs]
    total = onnx_ir.node("Concat", [node.outputs[0] for node in nodes], {"axis": 0})
    graph = onnx_ir.Graph(inputs, total.outputs, nodes=[*nodes, total], opset_imports={"": 18})
    assert share_sizes(graph) == {nodes[0]}
    assert [value.name for value in total.inputs] == [
        node.outputs[0].name for node in (nodes[0], nodes[0], nodes[2], nodes[3])
    ]


@pytest.fixture
def traced_layers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many layers each model had that was traced."""
    found: list[int] = []
    export = torch.onnx.export

    def count(module: Any, *arguments: Any, **options: Any) -> Any:
        found.append(len(find_layers(module.model).layers))
        return export(module, *arguments, **options)

    monkeypatch.setattr("torch.onnx.export", count)
    return found


def deeper(family: str, layers: int) -> PreTrainedModel:
    """A tiny model with more layers."""
    kinds = {**FAMILIES, **MIXTURES}
    config = copy.deepcopy(ENCODERS[family] if family in ENCODERS else kinds[family]().config)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[min(number, 1)] for number in range(layers)]
    if family in ENCODERS:
        return build_tiny(AutoModelForSequenceClassification.from_config, config)
    model = build_tiny(type(kinds[family]()), config)
    if family in MIXTURES:
        separate_experts(model)
    return model


def computed(program: Any, path: Path) -> dict[str, np.ndarray]:
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs_of(session)), strict=True))


def inputs_of(session: onnxruntime.InferenceSession) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    feed: dict[str, np.ndarray] = {}
    for value in session.get_inputs():
        shape = [SIZES.get(size, size) for size in value.shape]
        if "float" in value.type:
            feed[value.name] = random.normal(size=shape).astype(np.float32)
        else:
            feed[value.name] = np.ones(shape, np.int64)
    feed["input_ids"] = random.integers(3, 300, feed["input_ids"].shape)
    return feed


def _numbered_forward(layer: Any, *arguments: Any, **options: Any) -> torch.Tensor:
    return type(layer).__mro__[1].forward(layer, *arguments, **options) * (1 + 0.1 * layer.layer_idx)
