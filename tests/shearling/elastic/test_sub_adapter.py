"""Sub-adapters on disk: exact in stock PEFT where training was plain, exact through Shearling where it was masked."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn

from shearling.elastic.elastic_lora import effective_weight
from shearling.elastic.mask import MASK_FILE, load_masks, save_masks
from shearling.elastic.sub_adapter import CONFIG_FILE, load_sub_adapter, write_sub_adapter
from shearling.elastic.super_network import ADAPTER_FILE
from shearling.errors import (
    ArtefactCorrupt,
    ArtefactMismatch,
    ArtefactMissing,
    ModelUnsupported,
    NonFiniteWeights,
    ShapeMismatch,
)
from shearling.model.checkpoint import load_model, save_model
from tests.support.own_memory import in_own_memory
from tests.support.super_networks import FAMILIES, logits, mixed
from tests.support.tiny_models import tiny_tokenizer
from tests.support.tiny_runs import ALPHA, RANKS, sparse_model, tiny_network


def write(tmp_path, family="llama", *, masked, choice=None):
    """The frozen model, a sub-adapter of it, and the super-network with that sub-network active."""
    model, masks = sparse_model(family)
    save_model(model, tiny_tokenizer(), tmp_path / "frozen")
    network = tiny_network(family, masked=masked)
    choice = choice or mixed(network.space)
    network.activate(choice)
    write_sub_adapter(network, choice, tmp_path / "adapter", base_model="tiny/model", masks=masks if masked else None)
    return network, choice


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_sub_adapter_is_exact_in_stock_peft(family, tmp_path):
    network, choice = write(tmp_path, family, masked=False)
    stock = PeftModel.from_pretrained(load_model(tmp_path / "frozen"), str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(logits(stock), logits(network.model), rtol=0, atol=1e-5)
    for path, rank in network.space.ranks(choice).items():
        layer = stock.base_model.model.get_submodule(path)
        assert layer.r["default"] == rank
        assert layer.scaling["default"] == pytest.approx(ALPHA / RANKS[0], rel=1e-15)
    # And it is this choice that PEFT computes, not the whole adapter.
    network.activate(network.space.maximal())
    assert (logits(stock) - logits(network.model)).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_masked_sub_adapter_is_exact_through_shearling(family, tmp_path):
    network, choice = write(tmp_path, family, masked=True)
    expected = logits(network.model)
    loaded = load_sub_adapter(tmp_path / "frozen", tmp_path / "adapter")
    assert torch.equal(logits(in_own_memory(loaded)), expected)
    assert not any(module.training for module in loaded.modules())
    assert load_masks(tmp_path / "adapter" / MASK_FILE).keys() == network.space.ranks(choice).keys()
    # Stock PEFT ignores the mask and computes another function: which is why the card warns.
    stock = PeftModel.from_pretrained(load_model(tmp_path / "frozen"), str(tmp_path / "adapter")).eval()
    assert (logits(stock) - expected).abs().max() > 1e-3
    assert "ignores `mask.safetensors`" in (tmp_path / "adapter" / "README.md").read_text()


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
def test_a_scaling_by_rank_survives_the_disk_and_stock_peft(masked, tmp_path):
    model, masks = sparse_model("llama")
    save_model(model, tiny_tokenizer(), tmp_path / "frozen")
    network = tiny_network("llama", masked=masked, by_rank=True)
    choice = mixed(network.space)
    network.activate(choice)
    for path, rank in network.space.ranks(choice).items():
        assert network.layers[path].scaling == ALPHA / rank
    write_sub_adapter(network, choice, tmp_path / "adapter", base_model="tiny/model", masks=masks if masked else None)
    loaded = load_sub_adapter(tmp_path / "frozen", tmp_path / "adapter")
    torch.testing.assert_close(logits(loaded), logits(network.model), rtol=0, atol=1e-5)
    if not masked:
        stock = PeftModel.from_pretrained(load_model(tmp_path / "frozen"), str(tmp_path / "adapter")).eval()
        torch.testing.assert_close(logits(stock), logits(network.model), rtol=0, atol=1e-5)
    # And it is another function than with one scaling.
    constant = tiny_network("llama", masked=masked)
    constant.activate(choice)
    assert (logits(constant.model) - logits(network.model)).abs().max() > 1e-3
    network.activate(network.space.maximal())
    constant.activate(constant.space.maximal())
    assert torch.equal(logits(constant.model), logits(network.model))


def test_plain_sub_adapter_loads_through_shearling_too(tmp_path):
    network, _ = write(tmp_path, masked=False)
    loaded = load_sub_adapter(tmp_path / "frozen", tmp_path / "adapter")
    torch.testing.assert_close(logits(loaded), logits(network.model), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_weights_give_the_trained_function_bit_for_bit(family, tmp_path):
    network, choice = write(tmp_path, family, masked=True)
    merged, masks = sparse_model(family)
    state = load_file(tmp_path / "adapter" / ADAPTER_FILE)
    with torch.no_grad():
        for path in network.space.ranks(choice):
            linear = merged.get_submodule(path)
            assert isinstance(linear, nn.Linear)
            lora_a, lora_b = (state[f"base_model.model.{path}.lora_{side}.weight"] for side in "AB")
            linear.weight.copy_(
                effective_weight(linear.weight, lora_a, lora_b, scaling=network.space.scaling, mask=masks[path])
            )
            assert not linear.weight[~masks[path]].any()
    assert torch.equal(logits(merged), logits(network.model))


def test_files_are_the_same_each_time(tmp_path):
    for name in ("first", "second"):
        write(tmp_path / name, masked=True)
    first, second = (tmp_path / name / "adapter" for name in ("first", "second"))
    for file in (CONFIG_FILE, ADAPTER_FILE, "README.md"):
        assert (first / file).read_bytes() == (second / file).read_bytes()
    # safetensors writes metadata in an order of its own, so the masks are compared as tensors.
    masks, again = load_masks(first / MASK_FILE), load_masks(second / MASK_FILE)
    assert masks.keys() == again.keys()
    assert all(torch.equal(mask, again[path]) for path, mask in masks.items())


def test_configuration_holds_only_the_cut_modules(tmp_path):
    network, choice = write(tmp_path, masked=False)
    config = json.loads((tmp_path / "adapter" / CONFIG_FILE).read_text())
    ranks = network.space.ranks(choice)
    assert config["target_modules"] == sorted(ranks)
    assert config["rank_pattern"] == {path: rank for path, rank in ranks.items() if rank != RANKS[0]}
    assert config["alpha_pattern"] == {
        path: ALPHA * rank / RANKS[0] for path, rank in ranks.items() if rank != RANKS[0]
    }
    assert config["lora_dropout"] == 0
    assert not (tmp_path / "adapter" / MASK_FILE).exists()
    assert "Exact in stock PEFT" in (tmp_path / "adapter" / "README.md").read_text()


def test_an_alpha_that_is_no_multiple_of_the_ranks_is_not_rounded(tmp_path):
    model, _ = sparse_model("llama")
    save_model(model, tiny_tokenizer(), tmp_path / "frozen")
    network = tiny_network("llama", masked=False, alpha=10.5)
    choice = mixed(network.space)
    network.activate(choice)
    write_sub_adapter(network, choice, tmp_path / "adapter", base_model="tiny/model", masks=None)
    config = json.loads((tmp_path / "adapter" / CONFIG_FILE).read_text())
    for path, rank in network.space.ranks(choice).items():
        alpha = config["alpha_pattern"].get(path, config["lora_alpha"])
        assert alpha / rank == pytest.approx(10.5 / RANKS[0], rel=1e-15)
    loaded = load_sub_adapter(tmp_path / "frozen", tmp_path / "adapter")
    torch.testing.assert_close(logits(loaded), logits(network.model), rtol=0, atol=1e-5)


def test_a_mask_file_without_a_module_of_the_adapter_is_refused(tmp_path):
    write(tmp_path, masked=True)
    file = tmp_path / "adapter" / MASK_FILE
    masks = dict(load_masks(file))
    path = sorted(masks)[0]
    del masks[path]
    save_masks(file, masks)
    with pytest.raises(ArtefactMismatch, match="no mask") as caught:
        load_sub_adapter(tmp_path / "frozen", tmp_path / "adapter")
    assert path in str(caught.value.where)


@pytest.mark.parametrize(
    "change", [{"use_rslora": True}, {"use_dora": True}, {"bias": "all"}, {"fan_in_fan_out": True}]
)
def test_features_that_change_the_function_are_refused(change, tmp_path):
    write(tmp_path, masked=True)
    file = tmp_path / "adapter" / CONFIG_FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ModelUnsupported, match=next(iter(change))):
        load_sub_adapter(tmp_path / "frozen", tmp_path / "adapter")


def test_damaged_adapters_are_refused(tmp_path):
    write(tmp_path, masked=True)
    file = tmp_path / "adapter" / ADAPTER_FILE
    good = load_file(file)
    name = sorted(good)[0]
    for error, state in (
        (NonFiniteWeights, {**good, name: good[name] * torch.nan}),
        (ShapeMismatch, {**good, name: good[name][:-1].contiguous()}),
        (ArtefactMismatch, {key: value for key, value in good.items() if key != name}),
        (ArtefactMismatch, {**good, "base_model.model.lm_head.lora_A.weight": good[name].clone()}),
    ):
        save_file(state, file)
        with pytest.raises(error):
            load_sub_adapter(tmp_path / "frozen", tmp_path / "adapter")
    file.write_bytes(b"no safetensors")
    with pytest.raises(ArtefactCorrupt):
        load_sub_adapter(tmp_path / "frozen", tmp_path / "adapter")
    file.unlink()
    with pytest.raises(ArtefactMissing):
        load_sub_adapter(tmp_path / "frozen", tmp_path / "adapter")
    with pytest.raises(ArtefactMissing):
        load_sub_adapter(tmp_path / "frozen", tmp_path / "nowhere")


def test_another_base_is_refused_where_the_mask_shows_it(tmp_path):
    write(tmp_path, masked=True)
    save_model(sparse_model("llama", seed=6)[0], tiny_tokenizer(), tmp_path / "other")
    with pytest.raises(ArtefactMismatch, match="pruned entries are nonzero"):
        load_sub_adapter(tmp_path / "other", tmp_path / "adapter")
