"""The real SmolLM2, half pruned: the same text from torch, OpenVINO GenAI, ONNX Runtime and its GenAI, logits within
the gates, every zero kept."""

import pytest

from export.formats.onnx import onnx_logits, write_onnx
from export.formats.onnx_genai import write_onnx_genai
from export.formats.openvino import FLOAT32_CPU, openvino_logits, write_openvino
from export.verification.parity import broken_limits, compare, fixed_blocks, torch_logits
from serve.generate import generate_text
from serve.runtimes.runtime import RunOptions
from shearling.model.checkpoint import load_model, load_tokenizer, save_model
from shearling.model.layers import find_layers
from shearling.registry.number_formats import NUMBER_FORMATS
from shearling.target import Target
from tests.support.exported_files import count_zeros, stored_as
from tests.support.smollm2 import smollm2_base

pytestmark = [
    pytest.mark.pretrained,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]  # torchao warns while optimum imports it, torch.export of its own tree functions
FOLDERS = {"torch": "model", "openvino": "openvino", "onnx": "onnx", "onnx-genai": "onnx-genai"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    import torch

    directory = tmp_path_factory.mktemp("smollm2")
    base = smollm2_base(tmp_path_factory)
    model, tokenizer = load_model(base.path), load_tokenizer(base.path)
    masks = {}
    with torch.no_grad():
        # A fifth, by magnitude: what is left still speaks, so that equal text means something.
        for path, linear in find_layers(model).linears().items():
            size = linear.weight.abs()
            masks[path] = size > size.kthvalue(size.shape[1] // 5, dim=1, keepdim=True).values
            linear.weight.mul_(masks[path])
    save_model(model, tokenizer, directory / "model")
    write_openvino(model, tokenizer, directory / "openvino", stored_as("fp32"), sparsity={"method": "magnitude"})
    write_onnx(model, tokenizer, directory / "onnx", stored_as("fp32"))
    write_onnx_genai(model, tokenizer, directory / "onnx-genai", stored_as("fp32"))
    return directory, model, tokenizer, masks


def test_every_runtime_says_the_same(exported):
    pytest.importorskip("onnxruntime_genai")
    directory = exported[0]
    answers = {
        choice: generate_text(
            Target(directory / folder, format=choice),
            prompt="What is the capital of France?",
            max_new_tokens=24,
            options=RunOptions(precision="fp32"),
            chat=True,
        )
        for choice, folder in FOLDERS.items()
    }
    assert len({answer.token_ids for answer in answers.values()}) == 1
    assert len({answer.text for answer in answers.values()}) == 1
    assert "Paris" in answers["openvino"].text


def test_logits_pass_the_float32_gate(exported):
    directory, model, tokenizer, _ = exported
    blocks = fixed_blocks(tokenizer, vocabulary=model.config.vocab_size)
    reference = torch_logits(model, blocks)
    for logits in (
        openvino_logits(directory / "openvino", blocks, config=FLOAT32_CPU),
        onnx_logits(directory / "onnx", blocks),
        onnx_logits(directory / "onnx-genai", blocks),
    ):
        parity = compare(reference, logits, blocks)
        assert broken_limits(NUMBER_FORMATS.get("fp32").gate, parity) == []
        assert parity.top1_agreement == 1.0


def test_every_zero_is_in_every_file(exported):
    checks = count_zeros(exported[0], exported[3])
    assert checks.keys() == {"model", "openvino", "onnx", "onnx-genai"}
    assert all(check.zeros == check.pruned > 0 for check in checks.values())
