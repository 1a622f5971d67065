"""Finding the transformer by structure, on every family and on what is none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shearling.errors import ModelUnsupported
from shearling.model.layers import find_layers
from tests.support.tiny_models import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family):
    model = FAMILIES[family]()
    transformer = find_layers(model)
    assert len(transformer.layers) == model.config.num_hidden_layers
    assert transformer.layers_path == ("transformer.h" if family == "bloom" else "model.layers")
    linears = transformer.linears()
    assert len(linears) == len(transformer.layers) * len(transformer.linear_names)
    everything = dict(model.named_modules())
    assert all(everything[path] is linear for path, linear in linears.items())
    outside = {path for path, module in everything.items() if isinstance(module, nn.Linear)} - linears.keys()
    assert outside == {"lm_head"}


def test_works_on_meta():
    with torch.device("meta"):
        model = FAMILIES["phi3"].__globals__["Phi3ForCausalLM"](FAMILIES["phi3"]().config)
    assert find_layers(model).linear_names == (
        "self_attn.o_proj",
        "self_attn.qkv_proj",
        "mlp.gate_up_proj",
        "mlp.down_proj",
    )


def test_no_decoder():
    with pytest.raises(ModelUnsupported, match="no list"):
        find_layers(nn.Sequential(nn.Linear(3, 3)))


def test_what_holds_the_matrices_of_another_architecture_is_named():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=2))
    with pytest.raises(ModelUnsupported, match=r"its matrices are in Conv1D\..* docs/models\.md"):
        find_layers(model)


def test_unlike_layers_are_named():
    model = FAMILIES["llama"]()
    model.model.layers[2].mlp.extra = nn.Linear(2, 2)
    with pytest.raises(ModelUnsupported, match=r"layer 2 differs from layer 0 in mlp\.extra"):
        find_layers(model)


def test_wrapped_layers_are_refused():
    class QuantizedLinear(nn.Linear):
        pass

    model = FAMILIES["llama"]()
    model.model.layers[1].mlp.up_proj = QuantizedLinear(48, 88)
    with pytest.raises(ModelUnsupported, match="quantized or wrapped") as caught:
        find_layers(model)
    assert "mlp.up_proj" in caught.value.where
