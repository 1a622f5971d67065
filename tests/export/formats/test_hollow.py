"""Graphs that were converted without their weights: the same bytes as of a model that is converted as a whole."""

import hashlib

import numpy as np
import pytest
import torch

import export.formats.openvino as openvino_format
from export.formats.hollow import hollow
from export.formats.onnx import onnx_logits, write_onnx
from export.formats.openvino import FLOAT32_CPU, MODEL_XML, openvino_logits, write_openvino
from export.verification.parity import torch_logits
from tests.support.exported_files import stored_as
from tests.support.longer import mostly_slow
from tests.support.tiny_models import FAMILIES, VOCABULARY, tiny_tokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]  # torchao warns while optimum imports it, torch.export of its own tree functions


BLOCKS = [np.random.default_rng(7).integers(VOCABULARY, size=length) for length in (24, 13)]


def digests(directory):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(directory.iterdir())}


def largest_difference(left, right):
    return max(float(np.abs(one - other).max()) for one, other in zip(left, right, strict=True))


@pytest.mark.parametrize("weights", ["fp32", "int8"])
@pytest.mark.parametrize("family", mostly_slow(["llama", "gemma2", "phi3", "bloom"], fast=["bloom"]))
def test_the_graph_has_the_bytes_of_a_whole_conversion(tmp_path, monkeypatch, family, weights):
    model = FAMILIES[family]()
    write_openvino(model, tiny_tokenizer(), tmp_path / "hollow", stored_as(weights), sparsity={})
    # As where a converter folds a weight into another constant.
    monkeypatch.setattr(openvino_format, "fill_ir", lambda *_, **__: False)
    write_openvino(model, tiny_tokenizer(), tmp_path / "whole", stored_as(weights), sparsity={})
    assert digests(tmp_path / "hollow") == digests(tmp_path / "whole")


def test_a_model_comes_back_as_it_was():
    model = FAMILIES["llama_tied_gqa"]()
    before = {name: parameter.data_ptr() for name, parameter in model.named_parameters(remove_duplicate=False)}
    with hollow(model) as weights:
        assert weights["lm_head.weight"].data_ptr() == weights["model.embed_tokens.weight"].data_ptr()
        assert model.lm_head.weight is model.model.embed_tokens.weight
        # All but the first entry, which tells one stand-in from another.
        assert model.model.layers[0].mlp.up_proj.weight.count_nonzero() == 1
        assert model.model.norm.weight.count_nonzero() > 1
    after = {name: parameter.data_ptr() for name, parameter in model.named_parameters(remove_duplicate=False)}
    assert after == before


@pytest.mark.parametrize("weights", mostly_slow(["fp32", "fp16", "bf16", "int8", "int4"], fast=["bf16", "int8"]))
def test_files_of_a_bfloat16_model_have_its_numbers(tmp_path, weights):
    """The same integers, or the same numbers, as those of the model converted to float32."""
    halved = FAMILIES["llama"]().to(torch.bfloat16)
    wide = FAMILIES["llama"]().to(torch.bfloat16).float()
    found = []
    for name, model in (("halved", halved), ("wide", wide)):
        write_openvino(model, tiny_tokenizer(), tmp_path / name / "openvino", stored_as(weights), sparsity={})
        write_onnx(model, tiny_tokenizer(), tmp_path / name / "onnx", stored_as(weights))
        found.append(
            (
                list(openvino_logits(tmp_path / name / "openvino", BLOCKS, config=FLOAT32_CPU)),
                list(onnx_logits(tmp_path / name / "onnx", BLOCKS)),
            )
        )
    for left, right in zip(*found, strict=True):
        assert largest_difference(left, right) <= 1e-5
    limit = {"fp32": 1e-4, "fp16": 0.01, "bf16": 1e-4, "int8": 0.3, "int4": 5.0}[weights]
    assert largest_difference(torch_logits(halved, BLOCKS), found[0][0]) <= limit
    assert (tmp_path / "halved" / "openvino" / MODEL_XML).is_file()
