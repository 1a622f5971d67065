"""The real SmolLM2 with elastic widths, another one in every layer: the cut model is the active sub-network."""

import pytest
import torch

from export.merge import merge
from shearling.elastic.search_space import AdapterSpec, RankTemplate, SearchSpace, WidthTemplate
from shearling.elastic.super_network import build_super_network
from shearling.model.checkpoint import load_model
from shearling.model.layers import find_layers
from shearling.model.width_tracing import find_structure
from tests.support.own_memory import in_own_memory
from tests.support.smollm2 import smollm2_base

pytestmark = [pytest.mark.pretrained, pytest.mark.slow]
MODULES = ("self_attn.q_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
WIDTHS = (1536, 1344, 1152)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return smollm2_base(tmp_path_factory).path


def make_network(model, *, masked):
    structure = find_structure(model.config)
    block = structure.blocks["feed_forward"][0]
    width = WidthTemplate(name="feed_forward", producers=block.producers, consumers=(block.consumer,), values=WIDTHS)
    targets = tuple(name.rpartition(".")[2] for name in MODULES)
    space = SearchSpace(
        model_type=model.config.model_type,
        num_layers=len(structure.transformer.layers),
        layers_path=structure.transformer.layers_path,
        adapter=AdapterSpec(r_max=32, alpha=64.0, dropout=0.0, masked_training=masked, target_modules=targets),
        templates=(RankTemplate(name="ranks", modules=MODULES, values=(32, 16)), width),
    )
    masks = None
    if masked:
        masks = {}
        with torch.no_grad():
            for path, linear in find_layers(model).linears().items():
                size = linear.weight.abs()
                masks[path] = size > size.median(dim=1, keepdim=True).values
                linear.weight.mul_(masks[path])
    network = build_super_network(model, None, space, masks, generator=torch.Generator().manual_seed(0))
    for layer in network.layers.values():
        torch.nn.init.normal_(layer.lora_b, std=0.01, generator=torch.Generator().manual_seed(1))
    model.eval()
    choice = {group.id: group.values[index % len(group.values)] for index, group in enumerate(space.groups)}
    return network, choice


def difference(network, choice, mode):
    """The largest difference of the logits, and the largest logit."""
    tokens = torch.arange(100, 164)[None]
    network.activate(choice)
    with torch.inference_mode(), network.materialised():
        expected = network.model(input_ids=tokens).logits
    merged = merge(network, choice, mode, masks=network.masks)
    with torch.inference_mode():
        found = merged(input_ids=tokens).logits
    return float((found - expected).abs().max()), float(expected.abs().max())


def test_under_the_mask_not_a_bit_changes(base):
    network, choice = make_network(in_own_memory(load_model(base)), masked=True)
    assert len({choice[group.id] for group in network.space.width_groups}) == len(WIDTHS)
    assert difference(network, choice, "masked")[0] == 0.0


def test_a_plain_adapter_is_merged_exactly_but_for_rounding(base):
    """W x + B A x and (W + B A) x are the same number, which float64 shows; float32 rounds them apart."""
    network, choice = make_network(load_model(base), masked=False)
    rounding, size = difference(network, choice, "dense")
    assert rounding <= 1e-5 * size
    network, choice = make_network(load_model(base), masked=False)
    network.model.double()
    assert difference(network, choice, "dense")[0] <= 1e-10
