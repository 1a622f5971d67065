"""Subclasses of `nn.Linear` that compute the same are plain linears, and are pruned, adapted and packed as such."""

from __future__ import annotations

import torch
from torch import nn

from shearling.model.checkpoint import load_model
from shearling.model.layers import find_layers
from shearling.model.plain_modules import make_plain
from tests.support.tiny_models import VOCABULARY, falcon, save_tiny


def test_falcon_computes_what_it_did(tmp_path):
    tokens = torch.randint(3, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))
    loaded, original = load_model(save_tiny("falcon", tmp_path / "model")), falcon()
    found = find_layers(loaded).linear_names
    assert found == ("self_attention.query_key_value", "self_attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, original(tokens).logits, rtol=0, atol=1e-6)


def test_other_subclasses_stay():
    class QuantizedLinear(nn.Linear):
        pass

    model = nn.ModuleList([QuantizedLinear(2, 2)])
    make_plain(model)
    assert type(model[0]) is QuantizedLinear
