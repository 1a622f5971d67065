"""The loss at the labelled positions is the model's own loss: value and every adapter's gradient."""

from __future__ import annotations

import pytest
import torch

from tests.support.tiny_models import FAMILIES
from tests.support.tiny_runs import tiny_network
from train.super_adapter.causal_loss import BLOCK_POSITIONS, causal_loss
from train.super_adapter.tokenised_rows import IGNORED_LABEL


def make_batch(rows: int, length: int, *, labelled: float) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 60, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, length // 2 :] = 0
    labels = ids.masked_fill((torch.rand(ids.shape, generator=generator) >= labelled) | (mask == 0), IGNORED_LABEL)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def gradients(network, loss) -> dict[str, torch.Tensor]:
    network.model.zero_grad()
    loss.backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in network.model.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("labelled", [1.0, 0.1])
def test_value_and_gradients_are_those_of_the_models_own_loss(family, labelled):
    network = tiny_network(family, masked=True)
    network.model.train()
    batch = make_batch(4, 3 * BLOCK_POSITIONS // 4, labelled=labelled)
    own = causal_loss(network.model, batch)
    reference = network.model(**batch, use_cache=False).loss
    torch.testing.assert_close(own, reference, rtol=1e-5, atol=1e-5)
    ours, theirs = gradients(network, own), gradients(network, reference)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_items_divide_the_sum_and_the_head_is_whole_again():
    network = tiny_network("llama", masked=True)
    batch = make_batch(2, 16, labelled=0.5)
    count = int((batch["labels"][:, 1:] != IGNORED_LABEL).sum())
    mean, tenth = causal_loss(network.model, batch), causal_loss(network.model, batch, items=10 * count)
    torch.testing.assert_close(tenth * 10, mean)
    assert network.model(batch["input_ids"]).logits.shape[:2] == batch["input_ids"].shape


def test_the_head_sees_only_labelled_positions():
    network = tiny_network("llama", masked=True)
    batch, seen = make_batch(2, 16, labelled=0.2), []
    network.model.get_output_embeddings().register_forward_hook(
        lambda _module, inputs, _output: seen.append(inputs[0].shape[1])
    )
    causal_loss(network.model, batch)
    assert seen == [int((batch["labels"][:, 1:] != IGNORED_LABEL).sum())]
