"""Graphs of fused operators: the function of torch in prefill, decoding and batches, in plain ONNX Runtime and in
GenAI; the integers of OpenVINO's file; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from transformers.activations import ACT2FN

from export.formats.export_format import Storage
from export.formats.onnx import onnx_logits
from export.formats.onnx_genai import USAGE, OnnxGenAIDecoder, write_onnx_genai
from export.formats.openvino import write_openvino
from export.fused_graph.decoder import read_decoder
from export.packing.linear_graph import find_products
from export.packing.stored_weight import read_matrix
from export.verification.parity import padded_batch, torch_logits
from export.verification.zeros import check_zeros, read_onnx
from shearling.errors import ModelUnsupported, UsageError
from shearling.kernel.openvino_core import openvino_core
from shearling.kernel.packed_format import Matrix, ValueType
from shearling.model.layers import find_layers
from tests.support.exported_files import stored_as
from tests.support.fused_models import FUSED
from tests.support.longer import mostly_slow
from tests.support.onnxruntime_headers import needs_headers
from tests.support.tiny_models import FAMILIES, VOCABULARY, beginning_tokenizer, tiny_tokenizer, wide_model

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]  # torchao warns while optimum imports it
BLOCKS = [np.random.default_rng(7).integers(VOCABULARY, size=length) for length in (24, 13)]
PROMPT = [5, 6, 7, 9, 11]


def largest_difference(left, right):
    return max(float(np.abs(one - other).max()) for one, other in zip(left, right, strict=True))


def greedy(model, count: int) -> list[int]:
    with torch.no_grad():
        tokens = model.generate(torch.tensor([PROMPT]), max_new_tokens=count, do_sample=False, eos_token_id=None)
    return tokens[0, len(PROMPT) :].tolist()


def genai_greedy(directory: Path, count: int, *, ends: tuple[int, ...] = ()) -> list[int]:
    og = pytest.importorskip("onnxruntime_genai")
    path = directory / "genai_config.json"
    document = json.loads(path.read_text())
    document["model"]["eos_token_id"] = ends
    path.write_text(json.dumps(document))
    model = og.Model(str(directory))
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=len(PROMPT) + count)
    generator = og.Generator(model, params)
    generator.append_tokens(np.array(PROMPT, dtype=np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return generator.get_sequence(0)[len(PROMPT) :].tolist()


def operators(directory: Path) -> set[str]:
    return {node.op_type for node in onnx.load(directory / "model.onnx", load_external_data=False).graph.node}


@pytest.mark.parametrize("family", FUSED)
def test_it_computes_what_torch_does(family, tmp_path):
    model = FUSED[family]()
    write_onnx_genai(model, tiny_tokenizer(), tmp_path, stored_as("fp32"))
    reference = torch_logits(model, BLOCKS)
    assert largest_difference(reference, onnx_logits(tmp_path, BLOCKS)) <= 1e-4
    assert {"GroupQueryAttention", "SkipSimplifiedLayerNormalization"} <= operators(tmp_path)
    lengths = padded_batch(BLOCKS, head="language_model", fused=True).lengths
    rows = OnnxGenAIDecoder().batched(tmp_path, BLOCKS)
    assert largest_difference([row[:end] for row, end in zip(reference, lengths, strict=True)], rows) <= 1e-4
    assert genai_greedy(tmp_path, 24) == greedy(model, 24)


def test_the_card_begins_a_text_as_the_tokenizer_does(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime_genai")
    tokenizer = beginning_tokenizer()
    write_onnx_genai(FUSED["llama"](), tokenizer, tmp_path / "onnx-genai", stored_as("fp32"))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(USAGE, names)
    begun = tokenizer("Hello").input_ids
    assert begun[0] == tokenizer.bos_token_id
    assert names["generator"].get_sequence(0)[: len(begun)].tolist() == begun


def test_genai_reads_where_a_text_ends(tmp_path):
    model = FUSED["llama"]()
    write_onnx_genai(model, tiny_tokenizer(), tmp_path, stored_as("fp32"))
    document = json.loads((tmp_path / "genai_config.json").read_text())["model"]
    assert document["eos_token_id"] == [2]
    text = greedy(model, 24)
    end = text[5]
    assert genai_greedy(tmp_path, 24, ends=(end,)) == text[: text.index(end)]


@pytest.mark.parametrize("weights", ["fp16", "int8", "int4"])
def test_smaller_weights_stay_close(weights, tmp_path):
    model = wide_model()
    write_onnx_genai(model, tiny_tokenizer(), tmp_path, stored_as(weights))
    limit = {"fp16": 0.05, "int8": 0.5, "int4": 4}[weights]
    assert 0 < largest_difference(torch_logits(model, BLOCKS), onnx_logits(tmp_path, BLOCKS)) <= limit
    assert len(genai_greedy(tmp_path, 8)) == 8


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("tied", mostly_slow([True, False], fast=[True]))
def test_its_integers_and_scales_are_those_of_the_openvino_file(weights, tied, tmp_path):
    model = wide_model(192, 160, tied=tied)
    write_openvino(model, tiny_tokenizer(), tmp_path / "openvino", stored_as(weights), sparsity={})
    write_onnx_genai(model, tiny_tokenizer(), tmp_path / "onnx", stored_as(weights))
    ir = openvino_core().read_model(tmp_path / "openvino" / "openvino_model.xml")
    expected = {product.path: read_matrix(product) for product in find_products(ir)}
    found = {
        item.name: numpy_helper.to_array(item) for item in onnx.load(tmp_path / "onnx/model.onnx").graph.initializer
    }
    assert not any(
        array.dtype == np.float32 and array.ndim == 2 and "scales" not in name and "rotary" not in name
        for name, array in found.items()
    )
    assert len(expected) == 15
    for path, matrix in expected.items():
        bits = 4 if matrix.value_type is ValueType.INT4 else 8
        name = "model.embed_tokens" if tied and path == "lm_head" else path
        blocks = found[f"{name}.weight_Q{bits}"].reshape(len(matrix.values), -1)
        if bits == 4:
            blocks = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(len(blocks), -1)
        width = matrix.values.shape[1]
        assert np.array_equal(blocks[:, :width].astype(int) - 2 ** (bits - 1), matrix.values)
        scales = found[f"{name}.weight_scales"].reshape(len(blocks), -1)
        each = blocks.shape[1] // scales.shape[1]
        assert np.array_equal(
            np.repeat(scales, each, axis=1)[:, :width],
            np.repeat(matrix.scales.astype(np.float32), width // matrix.scales.shape[1], axis=1),
        )


@pytest.mark.parametrize(
    ("weights", "kernel"),
    [
        *((weights, "stock") for weights in ("fp32", "fp16", "int8", "int4")),
        *(pytest.param(weights, "sparse", marks=needs_headers) for weights in ("int8", "int4")),
    ],
)
def test_zeros_are_those_of_the_model(weights, kernel, tmp_path):
    model = wide_model()
    masks = {path: linear.weight != 0 for path, linear in find_layers(model).linears().items()}
    packing = write_onnx_genai(model, tiny_tokenizer(), tmp_path, stored_as(weights, kernel=kernel))
    zeros = read_onnx(tmp_path, {path: tuple(mask.shape) for path, mask in masks.items()})
    check = check_zeros("onnx-genai", zeros, masks)
    assert check.zeros == check.pruned > 0
    if kernel == "sparse":
        assert packing.operators == {"SparseLinear": len(masks)}
        stock = tmp_path / "stock"
        write_onnx_genai(model, tiny_tokenizer(), stock, stored_as(weights))
        assert largest_difference(onnx_logits(stock, BLOCKS), onnx_logits(tmp_path, BLOCKS)) <= 0.5
    else:
        assert packing is None


def test_integers_that_were_chosen_beforehand_stay(tmp_path):
    model = wide_model()
    path, width = "model.layers.1.mlp.down_proj", 96
    values = np.random.default_rng(3).integers(-8, 8, size=(64, width)).astype(np.int8)
    chosen = Matrix(values, ValueType.INT4, np.full((64, 3), 0.125, np.float16), 32)
    write_onnx_genai(model, tiny_tokenizer(), tmp_path, stored_as("int4"), integers={path: chosen})
    graph = onnx.load(tmp_path / "model.onnx").graph
    found = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    blocks = found[f"{path}.weight_Q4"].reshape(64, -1)
    assert np.array_equal(np.stack([blocks & 15, blocks >> 4], -1).reshape(64, -1).astype(int) - 8, values)
    # Beside what was chosen there is int8, as in the other formats.
    others = {name for name in find_layers(model).linears() if name != path} | {"model.embed_tokens"}
    assert {f"{name}.weight_Q8" for name in others} <= found.keys()


def test_layers_of_their_own_width_are_written_as_they_are(tmp_path):
    model = FUSED["llama"]()
    mlp = model.model.layers[1].mlp
    for name in ("gate_proj", "up_proj"):
        getattr(mlp, name).weight = torch.nn.Parameter(getattr(mlp, name).weight[:36].clone())
    mlp.down_proj.weight = torch.nn.Parameter(mlp.down_proj.weight[:, :36].clone())
    write_onnx_genai(model, tiny_tokenizer(), tmp_path, stored_as("fp32"))
    assert largest_difference(torch_logits(model, BLOCKS), onnx_logits(tmp_path, BLOCKS)) <= 1e-4
    assert genai_greedy(tmp_path, 12) == greedy(model, 12)


def test_a_window_that_the_architecture_ignores_is_not_written(tmp_path):
    """Llama that was converted from Mistral or Phi-3 often names one."""
    model = FUSED["llama"]()
    model.config.sliding_window = 5
    write_onnx_genai(model, tiny_tokenizer(), tmp_path, stored_as("fp32"))
    assert largest_difference(torch_logits(model, BLOCKS), onnx_logits(tmp_path, BLOCKS)) <= 1e-4


def test_the_activation_is_that_of_the_module(tmp_path):
    """Gemma's configuration has two names for it, which may differ."""
    model = FUSED["gemma"]()
    model.config.hidden_activation = "gelu"
    assert read_decoder(model).activation == "gelu_tanh"
    for layer in model.model.layers:
        layer.mlp.act_fn = ACT2FN["gelu"]
    assert read_decoder(model).activation == "gelu_erf"
    write_onnx_genai(model, tiny_tokenizer(), tmp_path, stored_as("fp32"))
    assert largest_difference(torch_logits(model, BLOCKS), onnx_logits(tmp_path, BLOCKS)) <= 1e-5


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"hidden_size": 3200, "num_attention_heads": 32}, "heads are 100 wide"),
        ({"hidden_size": 64, "num_attention_heads": 4, "head_dim": 20}, "heads are 20 wide"),
        ({"head_dim": 32, "partial_rotary_factor": 0.75}, "rotates 24 numbers of a head"),
        ({"head_dim": 32, "rope_parameters": {"partial_rotary_factor": 0.25}}, "rotates 8 numbers of a head"),
        ({"hidden_act": "relu"}, "its activation is relu"),
    ],
)
def test_layers_that_the_operators_lack_are_refused_before_any_work(tmp_path, config, complaint):
    with pytest.raises(ModelUnsupported, match=complaint) as caught:
        OnnxGenAIDecoder().check_config(config, where=tmp_path)
    assert caught.value.where == str(tmp_path)


@pytest.mark.parametrize("family", FUSED)
def test_no_known_layers_are_refused(family, tmp_path):
    for config in ({}, FUSED[family]().config.to_dict()):
        OnnxGenAIDecoder().check_config(config, where=tmp_path)


def test_another_architecture_is_refused_before_any_work():
    with pytest.raises(UsageError, match="bloom, only gemma, llama") as caught:
        OnnxGenAIDecoder().check("bloom", Storage(stored_as("fp32").weight_format))
    assert "--formats onnx" in caught.value.remedy


def _cut_heads(model):
    attention = model.model.layers[1].self_attn
    attention.q_proj.weight = torch.nn.Parameter(attention.q_proj.weight[:32].clone())


def _other_rope(model):
    model.model.rotary_emb.rope_type = "dynamic"


@pytest.mark.parametrize(
    ("model", "change", "complaint"),
    [
        (FAMILIES["llama"], None, "heads are 12 wide"),
        (FUSED["llama"], _cut_heads, "different numbers of attention heads"),
        (FUSED["llama"], _other_rope, "of the kind dynamic"),
    ],
)
def test_what_the_operators_do_not_compute_is_refused(model, change, complaint):
    made = model()
    if change:
        change(made)
    with pytest.raises(ModelUnsupported, match=complaint):
        read_decoder(made)
