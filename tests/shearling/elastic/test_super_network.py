"""The super-network against stock PEFT, and what it must never do to the frozen model (invariants 11-18)."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from shearling.elastic.super_network import ADAPTER_FILE, PEFT_PREFIX, build_super_network
from shearling.errors import ArtefactMismatch, DocumentInvalid, NonFiniteWeights, ShapeMismatch
from tests.support.super_networks import FAMILIES, logits, mixed, tokens
from tests.support.tiny_runs import ALPHA, RANKS, sparse_model, tiny_network


def stock_peft(network, family, **options):
    config = LoraConfig(
        r=RANKS[0],
        lora_alpha=ALPHA,
        lora_dropout=0.0,
        target_modules=sorted(network.layers),
        task_type="CAUSAL_LM",
        **options,
    )
    model = get_peft_model(sparse_model(family)[0], config)
    missing = model.load_state_dict(
        {name.replace(".weight", ".default.weight"): tensor for name, tensor in network.adapter_state().items()},
        strict=False,
    )
    assert not missing.unexpected_keys
    return model.eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_maximal_plain_network_is_stock_lora_bit_for_bit(family):
    network = tiny_network(family, masked=False)
    network.activate(network.space.maximal())
    assert torch.equal(logits(network.model), logits(stock_peft(network, family)))


def test_gradients_are_those_of_stock_lora():
    network = tiny_network(masked=False)
    network.activate(network.space.maximal())
    reference = stock_peft(network, "llama")
    for model in (network.model, reference):
        model(input_ids=tokens(), labels=tokens()).loss.backward()
    stock = dict(reference.named_parameters())
    for path, layer in network.layers.items():
        for side, ours in (("A", layer.lora_a), ("B", layer.lora_b)):
            torch.testing.assert_close(
                ours.grad, stock[f"{PEFT_PREFIX}{path}.lora_{side}.default.weight"].grad, rtol=1e-4, atol=1e-6
            )


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_untrained_network_is_the_frozen_model_at_every_choice(family, masked):
    network = tiny_network(family, masked=masked, trained=False)
    expected = logits(sparse_model(family)[0])
    for choice in (network.space.maximal(), mixed(network.space), network.space.minimal()):
        network.activate(choice)
        assert torch.equal(logits(network.model), expected)


@pytest.mark.parametrize("masked", [True, False])
def test_a_sub_network_depends_on_the_prefix_alone(masked):
    network = tiny_network(masked=masked)
    choice = mixed(network.space)
    network.activate(choice)
    expected = logits(network.model)
    with torch.no_grad():
        for path, rank in network.space.ranks(choice).items():
            network.layers[path].lora_a[rank:] = 7.0
            network.layers[path].lora_b[:, rank:] = -7.0
    assert torch.equal(logits(network.model), expected)
    network.activate(network.space.maximal())
    assert not torch.equal(logits(network.model), expected)


@pytest.mark.parametrize("masked", [True, False])
def test_activation_is_idempotent_independent_of_order_and_survives_eval(masked):
    network = tiny_network(masked=masked)
    choice = mixed(network.space)
    network.activate(choice)
    expected = logits(network.model)
    network.activate(network.space.minimal())
    network.activate(dict(reversed(choice.items())))
    network.activate(choice)
    network.model.train()
    network.model.eval()
    assert torch.equal(logits(network.model), expected)


@pytest.mark.parametrize("masked", [True, False])
def test_materialised_evaluation_is_the_same_function_and_ends(masked):
    network = tiny_network(masked=masked)
    network.activate(network.space.heuristic())
    expected = logits(network.model)
    with network.materialised():
        assert torch.equal(logits(network.model), expected)
        network.activate(network.space.minimal())
        smaller = logits(network.model)
        assert not torch.equal(smaller, expected)
    assert torch.equal(logits(network.model), smaller)
    assert all(layer._held is None for layer in network.layers.values())


@pytest.mark.parametrize("masked", [True, False])
def test_frozen_weights_are_bit_identical_after_optimiser_steps(masked):
    network = tiny_network(masked=masked)
    model, choice = network.model.train(), mixed(network.space)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {name.rpartition(".")[2] for name in trainable} == {"lora_a", "lora_b"}
    before = copy.deepcopy(model.state_dict())
    optimiser = torch.optim.AdamW(trainable.values(), lr=0.1, weight_decay=0.5)
    for step in range(3):
        network.activate(choice if step else network.space.maximal())
        model(input_ids=tokens(), labels=tokens()).loss.backward()
        optimiser.step()
    assert all(p.grad is None for name, p in model.named_parameters() if name not in trainable)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name not in trainable), name


@pytest.mark.parametrize("masked", [True, False])
def test_cut_rows_get_no_gradient(masked):
    network = tiny_network(masked=masked)
    choice = mixed(network.space)
    network.activate(choice)
    network.model(input_ids=tokens(), labels=tokens()).loss.backward()
    for path, rank in network.space.ranks(choice).items():
        layer = network.layers[path]
        assert layer.lora_a.grad[:rank].any()
        assert not layer.lora_a.grad[rank:].any()
        assert not layer.lora_b.grad[:, rank:].any()


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_recomputation_sees_the_same_ranks_and_gives_the_same_gradients(masked, reentrant):
    plain, checkpointed = tiny_network(masked=masked), tiny_network(masked=masked)
    checkpointed.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        checkpointed.model.enable_input_require_grads()
    seen: dict[str, list[int]] = {path: [] for path in checkpointed.layers}
    for path, layer in checkpointed.layers.items():
        layer.register_forward_hook(lambda module, _in, _out, path=path: seen[path].append(module.rank))
    choice = mixed(plain.space)
    for network in (plain, checkpointed):
        network.model.train()
        network.activate(choice)
        network.model(input_ids=tokens(), labels=tokens(), use_cache=False).loss.backward()
    assert {path: set(ranks) for path, ranks in seen.items()} == {
        path: {rank} for path, rank in plain.space.ranks(choice).items()
    }
    # The other form of recomputation stops as soon as it has every tensor that it needs, before the last modules of a
    # layer.
    assert sum(map(len, seen.values())) == 2 * len(seen) if reentrant else sum(map(len, seen.values())) > len(seen)
    for path, layer in plain.layers.items():
        assert torch.equal(layer.lora_a.grad, checkpointed.layers[path].lora_a.grad)
        assert torch.equal(layer.lora_b.grad, checkpointed.layers[path].lora_b.grad)


def test_adapter_parameters_are_counted_as_they_are():
    network = tiny_network(masked=True)
    stored = sum(tensor.numel() for tensor in network.adapter_state().values())
    assert network.adapter_params(network.space.maximal()) == stored
    assert network.adapter_params(network.space.minimal()) == stored * RANKS[-1] // RANKS[0]


def test_a_bad_choice_changes_nothing():
    network = tiny_network(masked=True)
    network.activate(network.space.minimal())
    for bad in ({}, {**network.space.maximal(), "layers.0.up": 3}, {**network.space.maximal(), "layers.9.up": 6}):
        with pytest.raises(DocumentInvalid):
            network.activate(bad)
    assert {layer.rank for layer in network.layers.values()} == {RANKS[-1]}


@pytest.mark.parametrize("by_rank", [False, True])
def test_a_rank_of_a_wider_space_keeps_its_prefix_and_is_scaled_by_the_same_rule(by_rank):
    network = tiny_network(masked=True, by_rank=by_rank)
    wider = network.space.of_every_rank()
    choice = dict.fromkeys(wider.maximal(), 5)
    with pytest.raises(DocumentInvalid, match="5 is not allowed"):
        network.activate(choice)
    assert {layer.rank for layer in network.layers.values()} == {RANKS[0]}
    network.activate(choice, space=wider)
    for layer in network.layers.values():
        update = ALPHA / (5 if by_rank else RANKS[0]) * (layer.lora_b[:, :5] @ layer.lora_a[:5])
        torch.testing.assert_close(layer.merged_weight(), layer.weight + update * layer.mask)


def test_states_that_do_not_fit_are_refused(tmp_path):
    network = tiny_network(masked=True)
    good = {name: tensor.clone() for name, tensor in network.adapter_state().items()}
    name = sorted(good)[0]
    where = tmp_path / ADAPTER_FILE
    with pytest.raises(ArtefactMismatch, match="missing"):
        network.load_adapter_state({key: value for key, value in good.items() if key != name}, where=where)
    with pytest.raises(ArtefactMismatch, match="not in the search space"):
        network.load_adapter_state({**good, "more": good[name]}, where=where)
    with pytest.raises(ShapeMismatch):
        network.load_adapter_state({**good, name: good[name][:-1]}, where=where)
    with pytest.raises(NonFiniteWeights) as caught:
        network.load_adapter_state({**good, name: good[name] * torch.inf}, where=where)
    assert name in str(caught.value)


def test_models_that_the_space_does_not_fit_are_refused():
    space = tiny_network("llama", masked=True).space
    model, masks = sparse_model("bloom")
    with pytest.raises(ArtefactMismatch, match="not a linear layer"):
        build_super_network(model, None, space, masks)
    model, masks = sparse_model("llama")
    del masks["model.layers.1.mlp.up_proj"]
    with pytest.raises(ArtefactMismatch, match="needs a mask"):
        build_super_network(model, None, space, masks)
    with pytest.raises(ArtefactMismatch, match="needs a mask"):
        build_super_network(sparse_model("llama")[0], None, space, None)
