"""Sparse exports: what is packed, that the file computes what the stock one computes, and that packing loses
nothing."""

from __future__ import annotations

import numpy as np
import openvino
import pytest
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from export.formats.openvino import FLOAT32_CPU, MODEL_XML, openvino_logits, write_openvino
from shearling.kernel import packed_format
from shearling.kernel.openvino_extension import core_for, load_packed, needs_extension
from tests.support.exported_files import count_zeros, stored_as
from tests.support.packed_decoders import SHAPE, seeded_decoder
from tests.support.packing_cases import BLOCKS, SHARES
from tests.support.tiny_models import FAMILIES, prune_at_random, pruned_model, tiny_tokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]  # torchao warns while optimum imports it


def wide_decoder() -> PreTrainedModel:
    """Of widths that have groups of four bits."""
    return seeded_decoder(LlamaForCausalLM, LlamaConfig(**SHAPE, tie_word_embeddings=True))


MODELS = {**FAMILIES, "wide": wide_decoder}


@pytest.fixture(
    scope="module",
    params=[("llama_tied_gqa", "int8"), ("llama_tied_gqa", "bf16"), ("wide", "int4"), ("gemma2", "int8")],
)
def both(request, tmp_path_factory):
    """The same pruned model, stock and sparse."""
    family, weights = request.param
    directory = tmp_path_factory.mktemp(f"{family}-{weights}")
    model = MODELS[family]()
    masks = prune_at_random(model, share=SHARES[weights])
    write_openvino(model, tiny_tokenizer(), directory / "stock" / "openvino", stored_as(weights), sparsity={})
    packing = write_openvino(
        model, tiny_tokenizer(), directory / "sparse" / "openvino", stored_as(weights, kernel="sparse"), sparsity={}
    )
    return directory, packing, masks, weights, family


def test_compiled_code_packs_and_reads_back(tmp_path, monkeypatch):
    def too_slow(*_: object) -> None:
        raise AssertionError("numpy packs or unpacks what compiled code could")

    for slow in ("_to_blocks", "_from_blocks"):
        monkeypatch.setattr(packed_format, slow, too_slow)
    model = wide_decoder()
    masks = prune_at_random(model, share=SHARES["int4"])
    stored = stored_as("int4", kernel="sparse")
    packing = write_openvino(model, tiny_tokenizer(), tmp_path / "openvino", stored, sparsity={})
    assert packing.layers
    (check,) = count_zeros(tmp_path, masks).values()
    assert check.zeros == check.pruned > 0


def read_weights(ir):
    """Name -> (type, bytes) of every constant larger than a vector."""
    named = {}
    for node in ir.get_ops():
        if node.get_type_name() == "Constant" and ".weight" in node.get_friendly_name():
            named[node.get_friendly_name()] = (
                node.get_element_type().get_type_name(),
                list(node.shape),
                node.data.tobytes(),
            )
    return named


def test_everything_pruned_is_packed_and_smaller(both):
    directory, packing, masks, weights, family = both
    # The head too, which is tied to the embedding and has no zeros; not Gemma's, whose logits are capped behind it.
    head = {} if family == "gemma2" else {"SparseHead": 1, "SparseEmbedding": 1}
    assert {layer.path for layer in packing.layers} == {*masks, *(["model.embed_tokens"] if head else [])}
    assert packing.kept == ({} if head else {"model.embed_tokens": "read by other nodes too"})
    assert {layer.weight_format for layer in packing.layers if layer.path in masks} == {weights}
    for layer in packing.layers:
        assert layer.bytes_after < (layer.bytes_before if layer.path in masks else 1.2 * layer.bytes_before)
    # Gemma 2 has norms between its products and its residuals, too.
    assert packing.operators == head | {"SparseLinear": 1, "SparseLayer": 3 if family == "wide" else 2}
    sizes = {
        kind: (directory / kind / "openvino" / "openvino_model.bin").stat().st_size for kind in ("stock", "sparse")
    }
    saved = packing.bytes_before - packing.bytes_after
    assert sizes["stock"] - sizes["sparse"] == pytest.approx(saved, rel=0.1)


def test_logits_are_those_of_the_stock_file(both):
    directory, _, _, weights, _ = both
    stock, sparse = (
        list(openvino_logits(directory / kind / "openvino", BLOCKS, config=FLOAT32_CPU)) for kind in ("stock", "sparse")
    )
    spread = max(float(np.std(logits)) for logits in stock)
    # Activations are rounded to 8 bits in groups where there are many rows, as OpenVINO does by default; weights are
    # the same.
    limit = {"int8": 0.05, "int4": 0.05, "bf16": 0.02}[weights]
    for left, right in zip(stock, sparse, strict=True):
        assert np.abs(left - right).max() <= limit * spread


def test_packing_is_reversible_bit_for_bit(both, tmp_path):
    directory, _, _, _, family = both
    stock = openvino.Core().read_model(directory / "stock" / "openvino" / MODEL_XML)
    xml = directory / "sparse" / "openvino" / MODEL_XML
    restored = load_packed(xml, properties={"PACKED": "never"}).read()
    assert read_weights(restored) == read_weights(stock)
    openvino.save_model(restored, tmp_path / MODEL_XML, compress_to_fp16=False)
    assert not needs_extension(tmp_path / MODEL_XML)
    if family != "gemma2":
        # Even their order is the same; Gemma's norms are more than one operator, and come back in another.
        assert (tmp_path / "openvino_model.bin").read_bytes() == (
            directory / "stock" / "openvino" / "openvino_model.bin"
        ).read_bytes()
    again = openvino_logits(tmp_path, BLOCKS, config=FLOAT32_CPU)
    for left, right in zip(
        openvino_logits(directory / "stock" / "openvino", BLOCKS, config=FLOAT32_CPU), again, strict=True
    ):
        assert np.array_equal(left, right)


def test_zeros_are_counted_in_the_packed_constants(both):
    directory, _, masks, _, _ = both
    (check,) = count_zeros(directory / "sparse", masks).values()
    assert check.zeros == check.pruned > 0
    assert check == count_zeros(directory / "stock", masks)["openvino"]


def test_the_file_says_what_it_needs(both):
    directory, packing, _, _, _ = both
    xml = directory / "sparse" / "openvino" / MODEL_XML
    assert needs_extension(xml)
    assert not needs_extension(directory / "stock" / "openvino" / MODEL_XML)
    info = core_for(xml).read_model(xml).get_rt_info(["shearling", "sparse_linear"])
    assert {name: int(info.astype(dict)[name].astype(str)) for name in packing.operators} == packing.operators
    with pytest.raises(RuntimeError, match=r"SparseLinear|SparseMLP|SparseLayer|opset"):
        openvino.Core().read_model(xml)


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_a_decoder_without_a_zero_is_packed_whole(tmp_path, weights):
    model = wide_decoder()
    write_openvino(model, tiny_tokenizer(), tmp_path / "stock" / "openvino", stored_as(weights), sparsity={})
    packing = write_openvino(
        model, tiny_tokenizer(), tmp_path / "packed" / "openvino", stored_as(weights, kernel="sparse"), sparsity={}
    )
    # Whole layers, which can take their attention in when they are loaded.
    assert packing.operators == {"SparseLinear": 1, "SparseLayer": 3, "SparseHead": 1, "SparseEmbedding": 1}
    assert packing.kept == {}
    loaded = load_packed(tmp_path / "packed" / "openvino" / MODEL_XML, properties={"PACKED": "always"})
    assert loaded.attention is None
    # Many rows are rounded to eight bits, and for int4 any; two of int8 are not.
    blocks = [*BLOCKS, BLOCKS[0][:2]]
    for stock, packed, block in zip(
        openvino_logits(tmp_path / "stock" / "openvino", blocks, config=FLOAT32_CPU),
        openvino_logits(tmp_path / "packed" / "openvino", blocks, config=FLOAT32_CPU),
        blocks,
        strict=True,
    ):
        coarse = len(block) > 2 or weights == "int4"
        assert np.std(stock - packed) <= (0.03 if coarse else 3e-4) * np.std(stock)


def test_in_bf16_a_decoder_without_a_zero_stays_as_it_is(tmp_path):
    model, masks = pruned_model("llama_tied_gqa", share=0)
    packing = write_openvino(
        model, tiny_tokenizer(), tmp_path / "openvino", stored_as("bf16", kernel="sparse"), sparsity={}
    )
    assert packing.layers == ()
    assert set(packing.kept) == {*masks, "model.embed_tokens"}
    assert not needs_extension(tmp_path / "openvino" / MODEL_XML)
