"""What mixed precision spares: the estimate against autograd, and the choice against its budget."""

from __future__ import annotations

import pytest
import torch
from transformers import BertForSequenceClassification, PreTrainedModel

from export.quantization.sensitivity import WINDOWS, harms, most_harmed
from shearling.model.layers import find_layers
from shearling.quantization.rounding import Rounded
from tests.support.tiny_models import VOCABULARY, bert, wide_model


def classifier() -> PreTrainedModel:
    torch.manual_seed(3)
    return BertForSequenceClassification(bert().config).eval()


@pytest.mark.parametrize("make", [wide_model, classifier])
def test_the_estimate_is_the_sum_of_squares_over_windows(make) -> None:
    model = make().requires_grad_(False)
    windows = [torch.randint(3, VOCABULARY, (9,), generator=torch.Generator().manual_seed(at)) for at in range(3)]
    linears = find_layers(model).linears()
    rounded = {
        path: Rounded((linear.weight * 0.9).detach(), torch.ones(len(linear.weight), 1), linear.in_features)
        for path, linear in linears.items()
    }
    found = harms(model, rounded, windows, bf16=False)
    expected = dict.fromkeys(linears, 0.0)
    for window in windows:
        for linear in linears.values():
            linear.weight.requires_grad_(True)
        logits = model(input_ids=window[None]).logits
        wanted = window[1:] if logits.ndim == 3 else logits.argmax(-1)
        chosen = logits[0, :-1] if logits.ndim == 3 else logits
        loss = -chosen.log_softmax(-1)[torch.arange(len(wanted)), wanted].sum()
        gradients = torch.autograd.grad(loss, [linear.weight for linear in linears.values()])
        for (path, linear), gradient in zip(linears.items(), gradients, strict=True):
            expected[path] += float((gradient * 0.1 * linear.weight.detach()).square().sum())
            linear.weight.requires_grad_(False)
    assert found == pytest.approx(expected, rel=1e-3)
    assert all(linear.weight.grad is None and not linear.weight.requires_grad for linear in linears.values())
    assert len(windows) <= WINDOWS


def test_the_most_harmed_weights_are_spared_as_far_as_there_is_room() -> None:
    harm, sizes = {"a": 4.0, "b": 3.0, "c": 8.0, "d": 1.0}, {"a": 10, "b": 30, "c": 40, "d": 20}
    # A weight of a costs 0.4, of c 0.2, of b 0.1, of d 0.05.
    assert most_harmed(harm, sizes, share=0.5) == {"a", "c"}
    assert most_harmed(harm, sizes, share=0.45) == {"a", "b"}
    assert most_harmed(harm, sizes, share=0.05) == set()
    assert most_harmed(harm, sizes, share=1.0) == {"a", "b", "c", "d"}
