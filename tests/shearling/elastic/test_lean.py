"""A super-network in less memory: masks as bits, frozen weights as stored, no merged weight kept; the same numbers."""

from __future__ import annotations

import copy

import pytest
import torch

from shearling.elastic.elastic_lora import ElasticLoraLinear
from shearling.elastic.super_network import build_super_network
from shearling.evaluation.torch_scorer import TorchScorer
from shearling.model.checkpoint import load_model, save_model
from shearling.model.head import auto_class, head_parameters
from shearling.model.stored_types import load_in_stored_types
from tests.support.own_memory import in_own_memory
from tests.support.tiny_models import ENCODERS, FAMILIES, VOCABULARY, build_tiny, tiny_tokenizer
from tests.support.tiny_runs import sparse_model, tiny_network
from train.super_adapter.causal_loss import causal_loss

DECODERS = ("llama", "llama_tied_gqa", "qwen2", "gemma3", "bloom")


def networks(family, tmp_path, *, masked=True, dtype=torch.bfloat16):
    """The same network as today's and lean, on the same checkpoint in two bytes a weight."""
    model, masks = sparse_model(family)
    save_model(model.to(dtype), tiny_tokenizer(), tmp_path)
    space = tiny_network(family, masked=masked).space
    found = []
    for lean in (False, True):
        loaded = in_own_memory(load_in_stored_types(tmp_path) if lean else load_model(tmp_path))
        generator = torch.Generator().manual_seed(0)
        network = build_super_network(
            loaded, tiny_tokenizer(), space, masks if masked else None, generator=generator, lean=lean
        )
        with torch.no_grad():
            for layer in network.layers.values():
                layer.lora_b.copy_(torch.randn(layer.lora_b.shape, generator=generator) * 0.1)
        found.append(network)
    return found


def batch():
    ids = torch.randint(3, VOCABULARY, (3, 11), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("family", DECODERS)
def test_loss_and_gradients_are_those_of_float32_bit_for_bit(family, masked, autocast, tmp_path):
    results = []
    for network in networks(family, tmp_path, masked=masked):
        network.activate(network.space.minimal())
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = causal_loss(network.model, batch())
        loss.backward()
        results.append(
            (loss.detach(), [p.grad for layer in network.layers.values() for p in (layer.lora_a, layer.lora_b)])
        )
    (loss, gradients), (lean_loss, lean_gradients) = results
    assert torch.equal(loss, lean_loss)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(lean_gradients, gradients, strict=True))
    assert any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bf16", [False, True])
def test_what_is_scored_is_the_same(bf16, dtype, tmp_path):
    logits = []
    for network in networks("llama_tied_gqa", tmp_path, dtype=dtype):
        scorer = TorchScorer(network.model, network.tokenizer, batch_size=2, bf16=bf16)
        with network.materialised():
            # Twice: what stands in for the head is put back.
            logits.append([scorer.logits(batch()["input_ids"], 0) for _ in range(2)])
    assert torch.equal(logits[0][0], logits[1][0])
    assert torch.equal(logits[1][0], logits[1][1])


def test_what_is_held_and_what_is_not(tmp_path):
    plain, lean = networks("llama", tmp_path)
    with plain.materialised(), lean.materialised():
        for path, layer in lean.layers.items():
            assert (layer.weight.dtype, plain.layers[path].weight.dtype) == (torch.bfloat16, torch.float32)
            assert layer._held is None
            assert plain.layers[path]._held is not None
            assert layer._mask.nbytes == -(-layer.weight.numel() // 8)
            assert torch.equal(layer.mask, plain.layers[path].mask)
            assert torch.equal(layer.merged_weight(), plain.layers[path].merged_weight())
    assert lean.model.lm_head.weight.dtype is torch.bfloat16


def test_the_backward_keeps_no_merged_weight(tmp_path):
    saved = {}
    for name, network in zip(("plain", "lean"), networks("llama", tmp_path), strict=True):
        owned = {p.untyped_storage().data_ptr() for p in [*network.model.parameters(), *network.model.buffers()]}
        kept = []

        def pack(tensor, owned=owned, kept=kept):
            if tensor.untyped_storage().data_ptr() not in owned:
                kept.append(tuple(tensor.shape))
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            causal_loss(network.model, batch())
        shapes = [tuple(layer.weight.shape) for layer in network.layers.values()]
        saved[name] = sum(kept.count(shape) for shape in set(shapes))
        assert len(shapes) == len(network.layers)
    assert saved == {"plain": len(shapes), "lean": 0}


@pytest.mark.parametrize("size", [(13, 11), (16, 24)])
def test_widths_cut_a_mask_of_bits_as_they_cut_one_of_bytes(size):
    base = torch.nn.Linear(size[1], size[0])
    mask = torch.rand(size, generator=torch.Generator().manual_seed(2)) > 0.5
    layers = [
        ElasticLoraLinear(base, r_max=4, scaling=2.0, mask=mask, generator=torch.Generator().manual_seed(3), lean=lean)
        for lean in (False, True)
    ]
    x = torch.randn(5, 7)
    outputs = []
    for layer in layers:
        torch.nn.init.ones_(layer.lora_b)
        layer.cut(out_features=9, in_features=7)
        y = layer(x)
        y.square().sum().backward()
        outputs.append((y.detach(), layer.lora_a.grad, layer.lora_b.grad))
    for ours, theirs in zip(*outputs, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_model_in_its_stored_types_computes_what_float32_does(family, tmp_path):
    save_model(FAMILIES[family]().to(torch.bfloat16), tiny_tokenizer(), tmp_path)
    ids = batch()["input_ids"]
    with torch.no_grad():
        lean, wide = in_own_memory(load_in_stored_types(tmp_path)), in_own_memory(load_model(tmp_path))
        assert torch.equal(lean(ids).logits, wide(ids).logits)


@pytest.mark.parametrize("family", ["distilbert", "mpnet"])
def test_the_head_of_a_classifier_learns_as_in_float32(family, tmp_path):
    """Both have two linear layers in it."""
    config = copy.deepcopy(ENCODERS[family])
    config.architectures = [f"{type(config).__name__.removesuffix('Config')}ForSequenceClassification"]
    save_model(build_tiny(auto_class(config).from_config, config).to(torch.bfloat16), tiny_tokenizer(), tmp_path)
    ids, gradients = batch()["input_ids"], []
    for model in (in_own_memory(load_in_stored_types(tmp_path)), in_own_memory(load_model(tmp_path))):
        head = head_parameters(model.requires_grad_(False).eval())
        for parameter in head.values():
            parameter.requires_grad_(True)
        model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, 0].sum().backward()
        assert all(parameter.dtype is torch.float32 for parameter in head.values())
        gradients.append({name: parameter.grad for name, parameter in head.items()})
    lean, wide = gradients
    assert len(lean) == 4
    for name, gradient in wide.items():
        assert gradient.any()
        assert torch.equal(lean[name], gradient)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("masked", [True, False])
def test_formats_that_layers_chose_are_rounded_alike(masked, autocast, tmp_path):
    found = []
    for network in networks("llama", tmp_path, masked=masked):
        for layer in network.layers.values():
            layer.round_to(4)
        inputs = {name: batch()[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast), network.materialised():
            found.append(network.model(**inputs).logits)
    assert torch.equal(*found)
