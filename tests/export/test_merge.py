"""Merging against the super-network it came from (invariants 35 to 39)."""

import pytest
import torch
from torch.nn import functional as F

from export.merge import SeparateLowRank, merge
from shearling.elastic.search_space import AdapterSpec, RankTemplate, SearchSpace
from shearling.elastic.super_network import build_super_network
from shearling.errors import NonFiniteWeights
from shearling.model.arithmetic import computed_in
from shearling.model.layers import find_layers
from tests.support.own_memory import in_own_memory
from tests.support.super_networks import mixed
from tests.support.tiny_models import FAMILIES, tiny_tokenizer
from tests.support.tiny_runs import tiny_network

ADAPTED = {
    "llama": ("self_attn.q_proj", "mlp.up_proj"),
    "phi3": ("self_attn.qkv_proj", "mlp.down_proj"),
    "bloom": ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
}
IDS = torch.tensor([[5, 17, 33, 60, 2, 9]])


def build(family, *, masked, pruned=True):
    model = FAMILIES[family]()
    transformer = find_layers(model)
    generator = torch.Generator().manual_seed(1)
    masks = {
        path: torch.rand(linear.weight.shape, generator=generator) > (0.5 if pruned else -1)
        for path, linear in transformer.linears().items()
    }
    with torch.no_grad():
        for path, linear in transformer.linears().items():
            linear.weight.mul_(masks[path])
    space = SearchSpace(
        model_type=model.config.model_type,
        num_layers=len(transformer.layers),
        layers_path=transformer.layers_path,
        adapter=AdapterSpec(
            r_max=6,
            alpha=12.0,
            dropout=0.0,
            masked_training=masked,
            target_modules=tuple(m.rpartition(".")[2] for m in ADAPTED[family]),
        ),
        templates=tuple(
            RankTemplate(name=f"g{index}", modules=(module,), values=(6, 3, 2))
            for index, module in enumerate(ADAPTED[family])
        ),
    )
    network = build_super_network(model, tiny_tokenizer(), space, masks, generator=generator)
    with torch.no_grad():
        for layer in network.layers.values():
            layer.lora_b.copy_(0.2 * torch.randn(layer.lora_b.shape, generator=generator))
    model.eval()
    return network, masks, {**space.heuristic(), space.groups[0].id: 2}


def logits(model):
    with torch.inference_mode():
        return model(IDS, use_cache=False).logits


@pytest.mark.parametrize("family", ADAPTED)
def test_masked_merge_is_bit_exact_and_keeps_every_zero(family):
    network, masks, choice = build(family, masked=True)
    network.activate(choice)
    unmerged = logits(network.model)
    base_weights = {
        path: module.weight.clone()
        for path, module in network.model.named_modules()
        if path in masks and path not in network.layers
    }
    merged = merge(network, choice, "masked", masks=masks)
    assert torch.equal(logits(merged), unmerged)
    modules = dict(merged.named_modules())
    for path, mask in masks.items():
        assert type(modules[path]) is torch.nn.Linear
        assert not modules[path].weight[~mask].any()
    for path, weight in base_weights.items():
        assert torch.equal(modules[path].weight, weight)


@pytest.mark.parametrize("family", ADAPTED)
@pytest.mark.parametrize("mode", ["dense", "separate"])
def test_exact_merges_of_a_plain_adapter(family, mode):
    network, masks, choice = build(family, masked=False)
    network.activate(choice)
    unmerged = logits(network.model)
    merged = merge(network, choice, mode, masks=masks)
    torch.testing.assert_close(logits(merged), unmerged, atol=1e-5, rtol=1e-5)
    modules = dict(merged.named_modules())
    adapted = next(iter(network.layers))
    if mode == "separate":
        assert isinstance(modules[adapted], SeparateLowRank)
        assert not modules[adapted].base.weight[~masks[adapted]].any()
    else:
        assert (modules[adapted].weight[~masks[adapted]] != 0).float().mean() > 0.9, (
            "a dense merge is expected to fill the zeros"
        )


def test_masked_merge_of_a_plain_adapter_is_approximate_by_just_the_masked_part():
    network, masks, choice = build("llama", masked=False)
    network.activate(choice)
    path, layer = next(iter(network.layers.items()))
    delta = layer.scaling * layer.lora_b[:, : layer.rank] @ layer.lora_a[: layer.rank]
    expected = layer.weight + delta * masks[path]
    merged = dict(merge(network, choice, "masked", masks=masks).named_modules())[path].weight
    torch.testing.assert_close(merged, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("mode", ["masked", "dense", "separate"])
@pytest.mark.parametrize("family", ADAPTED)
def test_the_order_of_the_modules_changes_nothing(family, mode):
    merged = []
    for backwards in (False, True):
        network, masks, choice = build(family, masked=mode == "masked")
        if backwards:
            network.layers = dict(reversed(network.layers.items()))
            network.unadapted = dict(reversed(network.unadapted.items()))
            masks, choice = (dict(reversed(found.items())) for found in (masks, choice))
        merged.append(merge(network, choice, mode, masks=masks).state_dict())
    there, back = merged
    assert there.keys() == back.keys()
    for name, tensor in there.items():
        assert torch.equal(tensor, back[name]), name


@pytest.mark.parametrize("mode", ["masked", "dense", "separate"])
def test_a_scaling_by_rank_is_merged_with_the_rank_of_the_choice(mode):
    unmerged, network = (tiny_network(masked=mode == "masked", by_rank=True) for _ in range(2))
    choice = mixed(network.space)
    unmerged.activate(choice)
    merged = merge(network, choice, mode, masks=network.masks)
    torch.testing.assert_close(logits(merged), logits(unmerged.model), atol=1e-5, rtol=1e-5)
    unmerged.activate(unmerged.space.maximal())
    assert (logits(merged) - logits(unmerged.model)).abs().max() > 1e-3


def test_a_masked_merge_without_masks_is_refused():
    network, _, choice = build("llama", masked=False)
    with pytest.raises(ValueError, match="needs the masks"):
        merge(network, choice, "masked", masks=None)


def test_full_mask_and_zero_update_are_the_edges():
    network, masks, choice = build("llama", masked=True, pruned=False)
    path = next(iter(network.layers))
    base = network.layers[path].weight.clone()
    dense = build("llama", masked=False, pruned=False)
    left = dict(merge(network, choice, "masked", masks=masks).named_modules())[path].weight
    right = dict(merge(dense[0], dense[2], "dense", masks=None).named_modules())[path].weight
    assert torch.equal(left, right)
    zero, masks, choice = build("llama", masked=True)
    with torch.no_grad():
        zero.layers[path].lora_b.zero_()
    base = zero.layers[path].weight.clone()
    assert torch.equal(dict(merge(zero, choice, "masked", masks=masks).named_modules())[path].weight, base)


def test_maximal_dense_merge_equals_peft():
    from peft import LoraConfig, get_peft_model

    network, _, _ = build("llama", masked=False)
    path, layer = next(iter(network.layers.items()))
    reference = torch.nn.Sequential(torch.nn.Linear(layer.in_features, layer.out_features, bias=False))
    with torch.no_grad():
        reference[0].weight.copy_(layer.weight)
    adapted = get_peft_model(reference, LoraConfig(r=6, lora_alpha=12, target_modules=["0"], init_lora_weights=False))
    wrapped = adapted.base_model.model[0]
    with torch.no_grad():
        wrapped.lora_A["default"].weight.copy_(layer.lora_a)
        wrapped.lora_B["default"].weight.copy_(layer.lora_b)
    expected = adapted.merge_and_unload()[0].weight
    ours = dict(merge(network, network.space.maximal(), "dense", masks=None).named_modules())[path].weight
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)
    x = torch.randn(3, layer.in_features)
    torch.testing.assert_close(F.linear(x, ours), F.linear(x, expected), atol=1e-5, rtol=1e-5)


def test_nan_in_the_adapter_names_the_module():
    network, masks, choice = build("llama", masked=True)
    path = next(iter(network.layers))
    with torch.no_grad():
        network.layers[path].lora_a[0, 0] = float("nan")
    with pytest.raises(NonFiniteWeights, match=path.replace(".", r"\.")):
        merge(network, choice, "masked", masks=masks)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ADAPTED)
def test_a_merge_into_files_holds_what_a_merge_in_memory_does(tmp_path, family, dtype):
    """The files that transformers would write of it, in the type of the frozen weights, and a model that reads them."""
    networks = [build(family, masked=True) for _ in range(2)]
    for network, _, _ in networks:
        for module in network.model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if not name.startswith("lora_"):
                    module._parameters[name] = torch.nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
        network.model.tie_weights()
    (network, masks, choice), (other, _, _) = networks
    expected = merge(network, choice, "masked", masks=masks)
    # Not the buffers, such as the frequencies of rotary embeddings.
    for parameter in expected.parameters():
        parameter.data = parameter.data.to(dtype)
    (tmp_path / "files").mkdir()
    merged = merge(other, choice, "masked", masks=masks, checkpoint=tmp_path / "files")
    expected.save_pretrained(str(tmp_path / "expected"))
    written = tmp_path / "files" / "model.safetensors"
    assert written.read_bytes() == (tmp_path / "expected" / "model.safetensors").read_bytes()
    assert merged.state_dict().keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(merged.state_dict()[name], tensor), name
        assert merged.state_dict()[name].dtype == dtype
    # In bfloat16 a product rounds by where its operands lie in memory, and in float32 one of few rows.
    in_own_memory(merged)
    with computed_in(merged, torch.float32), computed_in(expected, torch.float32):
        assert torch.equal(logits(merged), logits(expected))
    modules = dict(merged.named_modules())
    assert not any(modules[path].weight[~mask].any() for path, mask in masks.items())
    # Nothing of the frozen weights is left in the super-network.
    assert all(layer.weight.is_meta and layer.mask is None for layer in other.layers.values())


def test_a_bias_has_its_own_type_in_the_files(tmp_path):
    network, masks, choice = build("bloom", masked=True)
    for module in network.model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if name == "weight":
                module.weight = torch.nn.Parameter(parameter.detach().bfloat16(), requires_grad=False)
    network.model.tie_weights()
    before = {name: tensor.dtype for name, tensor in network.model.state_dict().items() if "lora_" not in name}
    biases = {f"{path}.bias": layer.bias.clone() for path, layer in network.layers.items()}
    assert {before[name] for name in biases} == {torch.float32}
    after = merge(network, choice, "masked", masks=masks, checkpoint=tmp_path).state_dict()
    assert {name: after[name].dtype for name in before if name in after} == {name: before[name] for name in after}
    for name, bias in biases.items():
        assert torch.equal(after[name], bias)
