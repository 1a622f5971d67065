"""Weights of bfloat16 computed in float32 and float64, module by module, as if the model were converted as a whole."""

import copy

import pytest
import torch

from shearling.model.arithmetic import computed_in
from tests.support.longer import mostly_slow
from tests.support.tiny_models import FAMILIES

IDS = torch.tensor([[5, 17, 33, 60, 2, 9]])


def logits(model):
    with torch.inference_mode():
        return model(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", mostly_slow(sorted(FAMILIES), fast=["llama_tied_gqa", "gemma", "bloom"]))
def test_every_family_computes_as_if_it_were_converted(family, dtype):
    halved = FAMILIES[family]().to(torch.bfloat16)
    expected = logits(copy.deepcopy(halved).to(dtype))
    stored = {name: parameter.data_ptr() for name, parameter in halved.named_parameters(remove_duplicate=False)}
    with computed_in(halved, dtype):
        found = logits(halved)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    again = {name: parameter.data_ptr() for name, parameter in halved.named_parameters(remove_duplicate=False)}
    assert again == stored
    assert logits(halved).dtype == torch.bfloat16


def test_a_model_comes_back_from_a_forward_that_fails():
    model = FAMILIES["llama"]().to(torch.bfloat16)
    with computed_in(model, torch.float32), pytest.raises(RuntimeError):
        model.model.layers[0].mlp.up_proj(torch.zeros(1, 3))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_weights_of_the_right_type_are_used_as_they_are():
    model = FAMILIES["llama"]()
    expected = logits(model)
    with computed_in(model, torch.float32):
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        assert torch.equal(logits(model), expected)
