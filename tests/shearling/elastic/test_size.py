"""Parameters and MACs against the analytic anchors of the papers' models, without weights, and against hooks
(invariant 21)."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig, BloomConfig, LlamaConfig

from shearling.elastic.size import measure_model, measure_network
from shearling.model.narrow_layers import Cut
from shearling.model.width_tracing import find_structure
from tests.support.tiny_models import FAMILIES
from tests.support.tiny_runs import tiny_network


def llama(hidden, intermediate, layers, heads):
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        vocab_size=32000,
        tie_word_embeddings=False,
    )


def on_meta(config, auto=AutoModelForCausalLM):
    with torch.device("meta"):
        model = auto.from_config(config)
        model.tie_weights()
    return model


def feed_forward_cuts(config, width):
    cuts = {}
    for layer, block in enumerate(find_structure(config).require("feed_forward")):
        cuts |= {f"model.layers.{layer}.{name}": Cut(out_features=width) for name in block.producers}
        cuts[f"model.layers.{layer}.{block.consumer}"] = Cut(in_features=width)
    return cuts


def test_llama_7b():
    config = llama(4096, 11008, 32, 32)
    size = measure_model(on_meta(config))
    assert size.parameters() == 6_738_415_616
    assert size.macs(tokens=1) == 6_476_005_376 + 32000 * 4096
    assert round(size.macs(tokens=256) / 1e12, 2) == 1.69
    heuristic, narrowest = feed_forward_cuts(config, 8256), feed_forward_cuts(config, 5504)
    assert size.parameters(heuristic) == 5_656_285_184
    assert size.parameters(narrowest) == 4_574_154_752
    assert round(size.macs(tokens=256, cuts=heuristic) / 1e12, 2) == 1.41
    assert round(size.macs(tokens=256, cuts=narrowest) / 1e12, 3) == 1.137


def test_llama_13b():
    size = measure_model(on_meta(llama(5120, 13824, 40, 40)))
    assert size.parameters() == 13_015_864_320
    assert size.macs(tokens=1) == 12_687_769_600 + 32000 * 5120


def test_bloomz_7b1():
    size = measure_model(
        on_meta(BloomConfig(hidden_size=4096, n_layer=30, n_head=32, vocab_size=250880, tie_word_embeddings=True))
    )
    assert round(size.parameters() / 1e9, 2) == 7.07
    assert round(size.macs(tokens=256) / 1e12, 2) == 1.81
    cuts = {f"transformer.h.{layer}.mlp.dense_h_to_4h": Cut(out_features=12288) for layer in range(30)}
    cuts |= {f"transformer.h.{layer}.mlp.dense_4h_to_h": Cut(in_features=12288) for layer in range(30)}
    assert round(size.parameters(cuts) / 1e9, 2) == 6.06
    assert round(size.macs(tokens=256, cuts=cuts) / 1e12, 2) == 1.55


def test_bert_base():
    size = measure_model(on_meta(BertConfig(), AutoModelForSequenceClassification))
    assert size.macs(tokens=128) == 12 * (4 * 768**2 + 2 * 768 * 3072) * 128 + 768**2 + 768 * 2
    # The paper counts the products inside attention as well: scores, and weighted values.
    assert round((size.macs(tokens=128) + 12 * 2 * 128 * 128 * 768) / 1e9, 2) == 11.17


@pytest.mark.parametrize("family", ["llama_tied_gqa", "bloom", "qwen2"])
def test_the_formula_counts_what_hooks_count(family):
    model, tokens, counted = FAMILIES[family](), 7, 0

    def count(module, _inputs, output):
        nonlocal counted
        counted += output.numel() * module.in_features

    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(count)
    model(input_ids=torch.ones(1, tokens, dtype=torch.long))
    size = measure_model(model)
    assert size.macs(tokens=tokens) == counted
    assert size.parameters() == sum(parameter.numel() for parameter in model.parameters())


def test_adapters_of_a_super_network_do_not_count():
    network = tiny_network("llama_tied_gqa", masked=True)
    assert measure_network(network).parameters() == measure_model(FAMILIES["llama_tied_gqa"]()).parameters()
