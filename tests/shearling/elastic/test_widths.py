"""Elastic widths in memory: slices, gradients, orders, and narrow models on disk (algorithms 7.5)."""

import copy
import json

import pytest
import torch

from export.merge import merge
from shearling.elastic.mask import PackedMasks
from shearling.elastic.narrowing import cut_masks
from shearling.elastic.reordering import Reordering, apply_reordering, load_reordering, save_reordering
from shearling.elastic.search_space import AdapterSpec, RankTemplate, SearchSpace, WidthTemplate
from shearling.elastic.super_network import build_super_network
from shearling.errors import ArtefactCorrupt, ArtefactMismatch, DocumentInvalid
from shearling.model.checkpoint import load_model, save_model
from shearling.model.narrow_layers import CONFIG_KEY, LayerWidths, narrow_linears
from shearling.model.width_tracing import find_structure
from tests.support.own_memory import in_own_memory
from tests.support.tiny_models import FAMILIES, tiny_tokenizer
from tests.support.tiny_runs import sparse_model
from train.super_adapter.importance import l1_importance, wanda_importance

TOKENS = torch.arange(3, 15)[None]
VALUES = {
    "feed_forward": {"llama_tied_gqa": (100, 75, 50), "bloom": (192, 96)},
    "attention": {"llama_tied_gqa": (60, 30)},
}


def make_space(model, family, *, masked=False):
    structure = find_structure(model.config)
    widths = tuple(
        WidthTemplate(
            name=part,
            producers=block.producers,
            grouped=block.grouped,
            consumers=(block.consumer,),
            head_dim=block.head_dim,
            group=block.group,
            values=VALUES[part][family],
        )
        for part, (block, *_) in structure.blocks.items()
    )
    # The key projection has no adapter: it is cut all the same.
    modules = (
        ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj")
        if family != "bloom"
        else ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
    )
    targets = tuple(name.rpartition(".")[2] for name in modules)
    return SearchSpace(
        model_type=model.config.model_type,
        num_layers=len(structure.transformer.layers),
        layers_path=structure.transformer.layers_path,
        adapter=AdapterSpec(r_max=6, alpha=12.0, dropout=0.0, masked_training=masked, target_modules=targets),
        templates=(RankTemplate(name="ranks", modules=modules, values=(6, 4)), *widths),
    )


def make_network(family="llama_tied_gqa", *, masked=False):
    model, masks = sparse_model(family) if masked else (FAMILIES[family](), None)
    network = build_super_network(
        model, None, make_space(model, family, masked=masked), masks, generator=torch.Generator().manual_seed(1)
    )
    for layer in network.layers.values():
        torch.nn.init.normal_(layer.lora_b, std=0.1)
    return network


def logits(model):
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


@pytest.mark.parametrize("family", ["llama_tied_gqa", "bloom"])
def test_a_cut_feed_forward_width_is_the_same_as_zeroed_channels(family):
    """Invariant 29: SiLU and GELU map 0 to 0, so dropping channels equals zeroing what produces them, biases included
    (33)."""
    network = make_network(family)
    space, narrow = network.space, VALUES["feed_forward"][family][-1]
    network.activate({**space.maximal(), "layers.0.feed_forward": narrow})
    cut = logits(network.model)
    network.activate(space.maximal())
    group = next(group for group in space.width_groups if group.id == "layers.0.feed_forward")
    with torch.no_grad():
        for path in group.modules:
            module = network.layers.get(path) or network.unadapted[path]
            module.weight[narrow:] = 0
            if module.bias is not None:
                module.bias[narrow:] = 0
            if path in network.layers:
                module.lora_b[narrow:] = 0
    assert (logits(network.model) - cut).abs().max() <= 1e-5
    assert not torch.equal(logits(network.model), logits(FAMILIES[family]()))


@pytest.mark.parametrize("masked", [False, True])
def test_only_the_active_prefix_learns(masked):
    network = make_network(masked=masked)
    network.activate(network.space.minimal())
    network.model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    up, down = (network.layers[f"model.layers.0.mlp.{name}_proj"] for name in ("up", "down"))
    assert up.lora_b.grad[:50, :4].abs().sum() > 0
    assert down.lora_a.grad[:4, :50].abs().sum() > 0
    assert up.lora_b.grad[50:].abs().sum() == up.lora_b.grad[:, 4:].abs().sum() == 0
    assert down.lora_a.grad[:, 50:].abs().sum() == down.lora_a.grad[4:].abs().sum() == 0
    assert all(parameter.grad is None for name, parameter in network.model.named_parameters() if "lora" not in name)


def test_activation_depends_on_the_choice_alone():
    network = make_network()
    space = network.space
    network.activate(space.heuristic())
    first = logits(network.model)
    for choice in (space.minimal(), space.maximal(), space.heuristic()):
        network.activate(choice)
    assert torch.equal(logits(network.model), first)
    with network.materialised():
        assert (logits(network.model) - first).abs().max() <= 1e-5


def test_a_space_of_another_model_is_refused():
    model = FAMILIES["llama_tied_gqa"]()
    space = make_space(model, "llama_tied_gqa")
    document = json.loads(space.model_dump_json(by_alias=True).replace("[100,75,50]", "[96,48]"))
    other = SearchSpace.model_validate_json(json.dumps(document))
    with pytest.raises(ArtefactMismatch, match="out_features is 100, the width group"):
        build_super_network(model, None, other, None)


def test_a_width_that_splits_a_head_is_refused():
    with pytest.raises(ValueError, match="width 45 of 'a' is not a multiple of 30"):
        WidthTemplate(
            name="a", producers=("q",), grouped=("k", "v"), consumers=("o",), head_dim=10, group=3, values=(60, 45)
        )


@pytest.mark.parametrize("method", ["l1", "wanda"])
def test_reordering_keeps_the_function_and_then_a_prefix_is_the_most_important(method):
    """Invariants 30 and 31, and the masks move along."""
    model, masks = sparse_model("llama_tied_gqa")
    space, before, exact = make_space(model, "llama_tied_gqa"), logits(model), logits(copy.deepcopy(model).double())
    original = {name: parameter.clone() for name, parameter in model.named_parameters()}
    if method == "l1":
        scores = {group.id: l1_importance(model, group) for group in space.width_groups}
    else:
        scores = wanda_importance(model, space, [TOKENS[0], TOKENS[0].flip(0)])
    reordering = Reordering(
        method, "0" * 64, {name: score.argsort(descending=True, stable=True) for name, score in scores.items()}
    )
    moved = apply_reordering(model, masks, space, reordering)
    # Sums go in another order: float32 rounds them by what the processor's own order makes of it.
    assert (logits(model) - before).abs().max() <= 1e-6 * before.abs().max()
    assert (logits(copy.deepcopy(model).double()) - exact).abs().max() <= 1e-14
    modules = dict(model.named_modules())
    assert isinstance(moved, PackedMasks), "eight times the memory"
    assert moved.keys() == masks.keys()
    assert all(not modules[path].weight[~mask].any() for path, mask in moved.items())
    kept = scores["layers.1.feed_forward"].topk(50).indices.sort().values
    up = modules["model.layers.1.mlp.up_proj"].weight[:50]
    assert torch.equal(up.sort(0).values, original["model.layers.1.mlp.up_proj.weight"][kept].sort(0).values)
    best_group = int(scores["layers.0.attention"].argmax())
    heads = original["model.layers.0.self_attn.q_proj.weight"].reshape(2, 30, -1)
    assert torch.equal(modules["model.layers.0.self_attn.q_proj"].weight[:30], heads[best_group])
    keys = original["model.layers.0.self_attn.k_proj.weight"].reshape(2, 10, -1)
    assert torch.equal(modules["model.layers.0.self_attn.k_proj"].weight[:10], keys[best_group])


def test_a_reordering_is_read_with_suspicion(tmp_path):
    model = FAMILIES["llama_tied_gqa"]()
    save_model(model, tiny_tokenizer(), tmp_path / "base")
    from shearling.model.checkpoint import hash_weights

    path, digest = tmp_path / "reordering.safetensors", hash_weights(tmp_path / "base")
    save_reordering(path, Reordering("l1", digest, {"layers.0.feed_forward": torch.arange(100).flip(0)}))
    assert load_reordering(path, base=tmp_path / "base").orders["layers.0.feed_forward"][0] == 99
    with pytest.raises(ArtefactMismatch, match="disagree on this group"):
        apply_reordering(
            model, None, make_space(model, "llama_tied_gqa"), load_reordering(path, base=tmp_path / "base")
        )
    save_reordering(path, Reordering("l1", digest, {"a": torch.tensor([0, 0])}))
    with pytest.raises(ArtefactCorrupt, match="not a permutation"):
        load_reordering(path, base=tmp_path / "base")
    save_reordering(path, Reordering("l1", "1" * 64, {"a": torch.tensor([0])}))
    with pytest.raises(ArtefactMismatch, match="ordered for other weights"):
        load_reordering(path, base=tmp_path / "base")


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ([1], DocumentInvalid, "expected an object"),
        (
            {"schema": "shearling.widths/2", "layers_path": "model.layers", "out_features": {}, "in_features": {}},
            DocumentInvalid,
            "newer",
        ),
        (
            {
                "schema": "shearling.widths/1",
                "layers_path": "model.layers",
                "out_features": {"mlp.up_proj": [0, 1]},
                "in_features": {},
            },
            DocumentInvalid,
            "at least 1",
        ),
        (
            {
                "schema": "shearling.widths/1",
                "layers_path": "model.layers",
                "out_features": {"mlp.absent": [5, 5]},
                "in_features": {},
            },
            ArtefactMismatch,
            "not a linear layer",
        ),
        (
            {
                "schema": "shearling.widths/1",
                "layers_path": "model.layers",
                "out_features": {"mlp.up_proj": [101, 5]},
                "in_features": {},
            },
            ArtefactMismatch,
            "exceeds the full size",
        ),
    ],
)
def test_bad_sizes_in_a_configuration_are_refused(tmp_path, value, error, message):
    save_model(FAMILIES["llama_tied_gqa"](), tiny_tokenizer(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, CONFIG_KEY: value}))
    with pytest.raises(error, match=message) as caught:
        load_model(tmp_path)
    assert caught.value.exit_code == 3


def test_narrow_models_save_and_load_exactly(tmp_path):
    """Heterogeneous layers round-trip, and what was loaded saves to the same bytes."""
    model = FAMILIES["qwen2"]()
    widths = LayerWidths(
        layers_path="model.layers",
        out_features={
            "mlp.gate_proj": (40, 72),
            "mlp.up_proj": (40, 72),
            "self_attn.q_proj": (24, 48),
            "self_attn.k_proj": (12, 24),
        },
        in_features={"mlp.down_proj": (40, 72), "self_attn.o_proj": (24, 48)},
    )
    cuts = widths.cuts() | {
        f"model.layers.{layer}.self_attn.v_proj": widths.cuts()[f"model.layers.{layer}.self_attn.k_proj"]
        for layer in (0, 1)
    }
    narrow_linears(model, cuts)
    widths = widths.model_copy(update={"out_features": {**widths.out_features, "self_attn.v_proj": (12, 24)}})
    setattr(model.config, CONFIG_KEY, widths.model_dump(mode="json", by_alias=True))
    save_model(model, tiny_tokenizer(), tmp_path / "one")
    loaded = in_own_memory(load_model(tmp_path / "one"))
    assert torch.equal(logits(loaded), logits(model.eval()))
    save_model(loaded, tiny_tokenizer(), tmp_path / "two")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_masks_are_cut_like_the_weights():
    network = make_network(masked=True)
    cuts = network.space.cuts(network.space.minimal())
    masks = cut_masks(network.masks, cuts)
    assert masks["model.layers.0.mlp.down_proj"].shape == (60, 50)
    assert masks["model.layers.0.self_attn.k_proj"].shape == (10, 60)
    assert masks["model.layers.0.self_attn.o_proj"].shape == (60, 30)


@pytest.mark.parametrize(
    ("family", "mode"),
    [("llama_tied_gqa", "masked"), ("bloom", "masked"), ("bloom", "dense"), ("bloom", "separate")],
)
def test_a_merge_is_as_narrow_as_the_sub_network_and_the_same_function(family, mode):
    """From a model in training, at another choice: the merge activates its own."""
    networks = []
    for _ in range(2):
        torch.manual_seed(0)
        networks.append(make_network(family, masked=mode == "masked"))
    unmerged, network = networks
    choice = network.space.minimal()
    unmerged.activate(choice)
    network.model.train()
    merged = merge(network, choice, mode, masks=network.masks)
    assert not merged.training
    if mode != "separate":
        assert not any(merged.get_submodule(path).weight.requires_grad for path in network.layers)
    assert (logits(merged) - logits(unmerged.model)).abs().max() <= 1e-5
    widths = LayerWidths.model_validate_json(json.dumps(getattr(merged.config, CONFIG_KEY)))
    cuts = {path: cut for path, cut in widths.cuts().items() if cut.out_features is not None}
    assert cuts
    for path, cut in cuts.items():
        module = merged.get_submodule(path)
        assert getattr(module, "base", module).out_features == cut.out_features
    if mode == "masked":
        for path, mask in cut_masks(network.masks, network.space.cuts(choice)).items():
            assert not merged.get_submodule(path).weight[~mask].any()
