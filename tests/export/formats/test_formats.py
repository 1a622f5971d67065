"""OpenVINO and ONNX files of real models: same function in prefill and decoding, same bytes twice, whole, and
self-sufficient."""

import hashlib
import json

import numpy as np
import onnxruntime
import openvino
import pytest
import torch

from export.formats.onnx import check_external_data, onnx_logits, write_onnx
from export.formats.openvino import FLOAT32_CPU, openvino_logits, write_openvino
from export.verification.parity import torch_logits
from shearling.errors import ArtefactCorrupt, ModelUnsupported
from shearling.kernel.openvino_core import openvino_core
from tests.support.exported_files import stored_as
from tests.support.longer import mostly_slow
from tests.support.tiny_models import FAMILIES, VOCABULARY, gpt_neo, tiny_tokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]  # torchao warns while optimum imports it, torch.export of its own tree functions
BLOCKS = [np.random.default_rng(7).integers(VOCABULARY, size=length) for length in (24, 13)]
# A sliding window shorter than a block, fused projections, and positions by ALiBi: what the other families lack.
KINDS = ("mistral", "phi3", "gemma3", "bloom")


def digests(directory):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(directory.iterdir())}


def largest_difference(left, right):
    return max(float(np.abs(one - other).max()) for one, other in zip(left, right, strict=True))


@pytest.fixture(scope="module")
def onnx_export(tmp_path_factory):
    directory = tmp_path_factory.mktemp("onnx")
    model = FAMILIES["llama_tied_gqa"]()
    write_onnx(model, tiny_tokenizer(), directory, stored_as("fp32"))
    return model, directory


@pytest.fixture(scope="module")
def openvino_export(tmp_path_factory):
    directory = tmp_path_factory.mktemp("openvino")
    model = FAMILIES["llama_tied_gqa"]()
    write_openvino(model, tiny_tokenizer(), directory, stored_as("fp32"), sparsity={"method": "wanda", "share": "0.5"})
    return model, directory


@pytest.mark.parametrize("family", KINDS)
def test_openvino_prefill_and_decoding_equal_torch(tmp_path, family):
    model = FAMILIES[family]()
    write_openvino(model, tiny_tokenizer(), tmp_path, stored_as("fp32"), sparsity={})
    assert (
        largest_difference(torch_logits(model, BLOCKS), openvino_logits(tmp_path, BLOCKS, config=FLOAT32_CPU)) <= 1e-4
    )


def test_a_conversion_leaves_no_patch_on_the_model(tmp_path, fresh_graphs):
    model = gpt_neo()
    reference = torch_logits(model, BLOCKS)
    write_openvino(model, tiny_tokenizer(), tmp_path, stored_as("fp32"), sparsity={})
    assert largest_difference(torch_logits(model, BLOCKS), reference) == 0
    assert model.config.to_dict() == gpt_neo().config.to_dict()
    assert largest_difference(reference, openvino_logits(tmp_path, BLOCKS, config=FLOAT32_CPU)) <= 1e-4


@pytest.mark.parametrize("family", mostly_slow(KINDS, fast=["bloom", "mistral"]))
def test_onnx_prefill_and_decoding_equal_torch(tmp_path, family):
    model = FAMILIES[family]()
    write_onnx(model, tiny_tokenizer(), tmp_path, stored_as("fp32"))
    assert largest_difference(torch_logits(model, BLOCKS), onnx_logits(tmp_path, BLOCKS)) <= 1e-4


@pytest.mark.parametrize("weights", mostly_slow(["fp16", "bf16", "int8"], fast=["int8"]))
def test_smaller_weights_stay_close(tmp_path, weights):
    model = FAMILIES["llama"]()
    reference = torch_logits(model, BLOCKS)
    write_openvino(model, tiny_tokenizer(), tmp_path / "openvino", stored_as(weights), sparsity={})
    write_onnx(model, tiny_tokenizer(), tmp_path / "onnx", stored_as(weights))
    limit = {"fp16": 0.01, "bf16": 0.08, "int8": 0.3}[weights]
    assert (
        0 < largest_difference(reference, openvino_logits(tmp_path / "openvino", BLOCKS, config=FLOAT32_CPU)) <= limit
    )
    assert 0 < largest_difference(reference, onnx_logits(tmp_path / "onnx", BLOCKS)) <= limit


@pytest.mark.slow
def test_the_same_model_gives_the_same_bytes(tmp_path, openvino_export, onnx_export, fresh_graphs):
    model, directory = openvino_export
    # Another conversion in between moves OpenVINO's name counters on.
    write_openvino(model, tiny_tokenizer(), tmp_path / "openvino", stored_as("int8"), sparsity={})
    write_openvino(
        model, tiny_tokenizer(), tmp_path / "again", stored_as("fp32"), sparsity={"method": "wanda", "share": "0.5"}
    )
    assert digests(tmp_path / "again") == digests(directory)
    write_onnx(onnx_export[0], tiny_tokenizer(), tmp_path / "onnx", stored_as("fp32"))
    assert digests(tmp_path / "onnx") == digests(onnx_export[1])


def test_onnx_batches_with_left_padding(onnx_export):
    model, directory = onnx_export
    session = onnxruntime.InferenceSession(str(directory / "model.onnx"), providers=["CPUExecutionProvider"])
    short = BLOCKS[1]
    ids = np.zeros((2, len(BLOCKS[0])), dtype=np.int64)
    mask = np.zeros_like(ids)
    ids[0], mask[0] = BLOCKS[0], 1
    ids[1, -len(short) :], mask[1, -len(short) :] = short, 1
    cache = {
        item.name: np.zeros([2, item.shape[1], 0, item.shape[3]], dtype=np.float32)
        for item in session.get_inputs()
        if item.name.startswith("past")
    }
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    logits = session.run(["logits"], {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **cache})[0]
    reference = torch_logits(model, BLOCKS)
    assert np.abs(logits[0] - reference[0]).max() <= 1e-4
    assert np.abs(logits[1, -len(short) :] - reference[1]).max() <= 1e-4


def test_onnx_weights_carry_their_hugging_face_names_and_nothing_of_this_machine(onnx_export):
    import onnx

    model, directory = onnx_export
    graph = onnx.load(str(directory / "model.onnx"), load_external_data=False).graph
    named = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for name, parameter in model.named_parameters():
        shared = "lm_head.weight" if name == "model.embed_tokens.weight" else name
        assert named[shared] == list(parameter.shape)
    assert b"site-packages" not in (directory / "model.onnx").read_bytes()


def test_a_short_data_file_is_found(tmp_path, onnx_export):
    for file in onnx_export[1].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    check_external_data(tmp_path / "model.onnx")
    data = tmp_path / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-4])
    with pytest.raises(ArtefactCorrupt):
        check_external_data(tmp_path / "model.onnx")


def test_openvino_directory_is_all_that_genai_needs(openvino_export):
    import openvino_genai

    model, directory = openvino_export
    ir = openvino_core().read_model(directory / "openvino_model.xml")
    assert ir.get_rt_info(["sparsity", "method"]).astype(str) == "wanda"
    assert json.loads((directory / "config.json").read_text())["model_type"] == "llama"
    pipeline = openvino_genai.LLMPipeline(str(directory), "CPU", **FLOAT32_CPU)
    prompt = BLOCKS[0][None]
    config = openvino_genai.GenerationConfig(max_new_tokens=12, do_sample=False, eos_token_id=-1, ignore_eos=True)
    generated = pipeline.generate(openvino.Tensor(prompt), config).tokens[0]
    with torch.no_grad():
        expected = model.generate(torch.from_numpy(prompt), max_new_tokens=12, min_new_tokens=12, do_sample=False)[
            0, prompt.shape[1] :
        ]
    # transformers forbids the end token until min_new_tokens; a random model does not choose it here.
    assert generated == expected.tolist()
    tokenizer = tiny_tokenizer()
    text = "Report 7: nation's models are sparse, isn't that fast?"
    encoded = pipeline.get_tokenizer().encode(text, add_special_tokens=False).input_ids.data[0].tolist()
    assert encoded == tokenizer(text)["input_ids"]
    assert pipeline.get_tokenizer().decode(encoded) == text


def test_a_tokenizer_without_an_openvino_form_is_refused(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from export.formats.openvino import write_tokenizer

    backend = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    backend.pre_tokenizer = pre_tokenizers.UnicodeScripts()
    with pytest.raises(ModelUnsupported, match="cannot convert this tokenizer"):
        write_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="a"), tmp_path)


def test_a_tokenizer_that_converts_to_another_is_refused(tmp_path, monkeypatch):
    from export.formats.openvino import write_tokenizer

    tokenizer = tiny_tokenizer()
    original = type(tokenizer).__call__
    monkeypatch.setattr(
        type(tokenizer),
        "__call__",
        lambda self, text, **options: {"input_ids": original(self, text, **options)["input_ids"][1:]},
    )
    with pytest.raises(ModelUnsupported, match="differs from the original at token 0"):
        write_tokenizer(tokenizer, tmp_path)
