"""A sub-adapter on disk: stock PEFT format, with the mask beside it where training was masked.

`rank_pattern` gives each module its rank; where training used one scaling, `alpha_pattern` keeps alpha / rank at it. A
plain adapter is exact in stock PEFT. A masked one is not low-rank: it carries `mask.safetensors`, which PEFT would
ignore, and `load_sub_adapter` applies.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shearling.elastic.mask import MASK_FILE, Masks, PackedMasks, check_masked_zeros, load_masks, save_masks
from shearling.elastic.search_space import Choice
from shearling.elastic.super_network import ADAPTER_FILE, PEFT_PREFIX, SuperNetwork, read_adapter_file
from shearling.errors import ArtefactMismatch, ArtefactMissing, ModelUnsupported, NonFiniteWeights, ShapeMismatch
from shearling.model.checkpoint import load_model
from shearling.strict_json import read_json

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

CONFIG_FILE = "adapter_config.json"


def write_sub_adapter(
    network: SuperNetwork, choice: Choice, directory: Path, *, base_model: str, masks: Masks | None
) -> None:
    """Cut the chosen ranks out of a super-adapter and write them.

    Args:
        network: holds the super-adapter.
        choice: group id -> rank.
        directory: made where it does not exist.
        base_model: name or path of the frozen model, for the adapter's configuration.
        masks: of the pruned modules; given exactly where training was masked, and then stored beside the adapter.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    spec, ranks = network.space.adapter, network.space.ranks(choice)
    state: dict[str, Tensor] = {}
    for path, rank in ranks.items():
        layer = network.layers[path]
        state[f"{PEFT_PREFIX}{path}.lora_A.weight"] = layer.lora_a.detach()[:rank].contiguous().cpu()
        state[f"{PEFT_PREFIX}{path}.lora_B.weight"] = layer.lora_b.detach()[:, :rank].contiguous().cpu()
    save_file(state, directory / ADAPTER_FILE)
    cut = {path: rank for path, rank in ranks.items() if rank != spec.r_max}
    config = LoraConfig(
        r=spec.r_max,
        lora_alpha=_whole(spec.alpha),
        lora_dropout=0.0,
        # Whole module paths: `layers.1.up_proj` alone would also match `layers.11.up_proj`.
        target_modules=sorted(ranks),
        rank_pattern=cut,
        # PEFT divides by the rank itself.
        alpha_pattern={}
        if network.space.scales_by_rank
        else {path: _whole(spec.alpha * rank / spec.r_max) for path, rank in cut.items()},
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_model,
        inference_mode=True,
    )
    config.save_pretrained(str(directory))
    _sort_sets(directory / CONFIG_FILE)
    if masks is not None:
        packed = PackedMasks()
        for path in ranks:
            packed.add({path: masks[path]})
        save_masks(directory / MASK_FILE, packed)
    (directory / "README.md").write_text(_card(base_model, masked=masks is not None))


def load_sub_adapter(base_directory: Path, adapter_directory: Path) -> PreTrainedModel:
    """Load a frozen model with a sub-adapter in place, exactly as it was trained.

    Args:
        base_directory: the frozen model, such as `RUN/sparse`.
        adapter_directory: what `write_sub_adapter` wrote.

    Returns:
        The model in float32 and eval mode; its adapted linears are `ElasticLoraLinear`.

    Raises:
        ModelUnsupported: the adapter uses rsLoRA, DoRA, biases or another feature that changes the update.
        ArtefactMismatch: adapter, mask and model name different modules, or the mask was made for other weights.
        NonFiniteWeights: NaN or infinity in a tensor.
    """
    import torch
    from torch import nn

    from shearling.elastic.elastic_lora import ElasticLoraLinear

    config = _read_config(adapter_directory)
    state = read_adapter_file(adapter_directory / ADAPTER_FILE)
    mask_file = adapter_directory / MASK_FILE
    masks = load_masks(mask_file) if mask_file.is_file() else None
    model = load_model(base_directory)
    if masks is not None:
        check_masked_zeros(model, masks)
    modules = dict(model.named_modules())
    for path in sorted(config["target_modules"]):
        base = modules.get(path)
        names = [f"{PEFT_PREFIX}{path}.lora_{side}.weight" for side in "AB"]
        if not isinstance(base, nn.Linear) or any(name not in state for name in names):
            raise ArtefactMismatch("adapter and model do not fit together", where=f"{adapter_directory}: {path}")
        if masks is not None and path not in masks:
            raise ArtefactMismatch("no mask of a module that was trained under one", where=f"{mask_file}: {path}")
        lora_a, lora_b = (state.pop(name) for name in names)
        if not (torch.isfinite(lora_a).all() and torch.isfinite(lora_b).all()):
            raise NonFiniteWeights("the adapter holds NaN or infinity", where=path)
        rank = config["rank_pattern"].get(path, config["r"])
        alpha = config["alpha_pattern"].get(path, config["lora_alpha"])
        layer = ElasticLoraLinear(base, r_max=rank, scaling=alpha / rank, mask=None if masks is None else masks[path])
        if layer.lora_a.shape != lora_a.shape or layer.lora_b.shape != lora_b.shape:
            raise ShapeMismatch(f"stored {list(lora_a.shape)} and {list(lora_b.shape)} for rank {rank}", where=path)
        with torch.no_grad():
            layer.lora_a.copy_(lora_a)
            layer.lora_b.copy_(lora_b)
        parent, _, name = path.rpartition(".")
        setattr(modules[parent], name, layer)
    if state:
        raise ArtefactMismatch(f"tensor {sorted(state)[0]} belongs to no target module", where=adapter_directory)
    return model.eval()


def _read_config(directory: Path) -> dict[str, Any]:
    if not (directory / CONFIG_FILE).is_file():
        raise ArtefactMissing(f"no adapter here: {CONFIG_FILE} is missing", where=directory)
    config = read_json(directory / CONFIG_FILE)
    for feature, neutral in (("use_rslora", False), ("use_dora", False), ("bias", "none"), ("fan_in_fan_out", False)):
        if config.get(feature, neutral) != neutral:
            raise ModelUnsupported(f"{feature} = {config[feature]!r} is not supported", where=directory / CONFIG_FILE)
    return config


def _whole(value: float) -> int | float:
    """PEFT declares alpha as an integer; keep it one where it is."""
    return int(value) if value == int(value) else value


def _sort_sets(path: Path) -> None:
    # PEFT keeps target modules in a set and writes them in an order that changes from run to run.
    config = json.loads(path.read_text())
    config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _card(base_model: str, *, masked: bool) -> str:
    head = f"---\nbase_model: {base_model}\nlibrary_name: peft\n---\n\n# Sub-adapter\n\n"
    if not masked:
        return head + "Exact in stock PEFT: `PeftModel.from_pretrained(sparse_base, this_directory)`.\n"
    return head + (
        "**Trained under a sparsity mask.** Stock PEFT loads this adapter but ignores "
        "`mask.safetensors`, and so computes\n"
        "another function. Load it exactly with\n\n"
        "```python\nfrom shearling.elastic.sub_adapter import load_sub_adapter\n\nmodel = "
        "load_sub_adapter(sparse_base, this_directory)\n```\n\n"
        "or use the merged model of the same export, which needs no adapter and keeps every zero.\n"
    )
