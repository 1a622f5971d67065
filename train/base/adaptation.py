"""A dense model adapted to the task before anything is pruned: by which LoRA, and the `base` artefact with that LoRA
in its weights.
"""

from __future__ import annotations

from pathlib import Path

from shearling.artefact import Artefact, write_artefact
from shearling.elastic.search_space import SEARCH_SPACE_FILE, read_search_space
from shearling.elastic.super_network import SuperNetwork, assemble_super_network
from shearling.model.checkpoint import save_description, save_model
from shearling.model.skeleton import check_finite_tensor
from shearling.model.weight_shards import Dtype, StoredWeights, writing_weights
from shearling.recipe.recipe import Recipe
from shearling.recipe.search import SearchSection
from shearling.recipe.training import TeacherSection


def adapting_recipe(recipe: Recipe) -> Recipe | None:
    """The recipe of the LoRA that adapts the dense model; None where the recipe does not ask for it.

    The largest rank alone, without mask, grid or width, at the same rate; as many steps where it says no other number.
    Where a teacher keeps the language of the prompt, the model itself as it came does so here.
    """
    adaptation, adapter, train = recipe.model.adaptation, recipe.adapter, recipe.train
    if adaptation is None or adapter is None or train is None:
        return None
    groups = tuple(group.model_copy(update={"ranks": group.ranks[:1]}) for group in adapter.groups)
    plain = {"masked": False, "scaling": "constant", "groups": groups}
    prompt = train.teacher.prompt if train.teacher is not None and recipe.leaves_tokens_unlabelled else 0.0
    length = {} if adaptation.steps is None else {"steps": adaptation.steps, "epochs": None}
    one = {
        **length,
        "draw": "independent",
        "largest_first": 0.0,
        "shrinking": "at_once",
        "sandwich": False,
        "distillation": False,
        "teacher": TeacherSection(prompt=prompt) if prompt else None,
    }
    without = dict.fromkeys(("sparsity", "quantization", "width"))
    return recipe.model_copy(
        update={
            **without,
            "name": "lora",
            "model": recipe.model.model_copy(update={"adaptation": None}),
            "adapter": adapter.model_copy(update=plain),
            "train": train.model_copy(update=one),
            "search": SearchSection(),
        }
    )


def write_adapted(base: Artefact, lora: Artefact, destination: Path, *, force: bool = False) -> None:
    """Merge a LoRA into the dense weights that it was trained on, and write a `base` artefact.

    Args:
        base: the dense model.
        lora: a `super_adapter` of one sub-network, trained on it.
        destination: where the artefact will stand.
        force: replace one that stands there.

    Raises:
        ArtefactCorrupt: the adapter does not fit the model.
        OutputExists, OutputLocked: the destination cannot be written.
    """
    network = assemble_super_network(base, lora, read_search_space(lora.path / SEARCH_SPACE_FILE), lean=True)
    network.activate(network.space.maximal())
    parents = {"base": base, "super_adapter": lora}
    with write_artefact(destination, kind="base", parents=parents, seed=lora.manifest.seed, force=force) as draft:
        weights = StoredWeights(base.path)
        if all(f"{path}.weight" in weights.tensors for path in network.layers):
            _write_merged(network, weights, draft.directory)
            save_description(network.model, network.tokenizer, draft.directory, base.manifest.details["torch_dtype"])
        else:
            _save_merged(network, draft.directory, base.manifest.details["torch_dtype"])
        draft.details |= {**base.manifest.details, "adapted": True}


def _write_merged(network: SuperNetwork, weights: StoredWeights, directory: Path) -> None:
    """Tensor by tensor, each merged in float32 and rounded once, to the type that the base has it in."""
    adapted = {f"{path}.weight": layer for path, layer in network.layers.items()}
    with writing_weights(directory, weights.tensors) as writer:
        for name, tensor in weights.tensors.items():
            value = adapted[name].merged_weight() if name in adapted else weights.read(name)
            stored = value.to(tensor.torch_dtype)
            check_finite_tensor(stored, where=name)
            writer.write(name, stored)


def _save_merged(network: SuperNetwork, directory: Path, dtype: Dtype) -> None:
    """As a whole: what is stored goes by other names than the modules."""
    import torch

    for path, layer in network.layers.items():
        linear = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        linear.weight = torch.nn.Parameter(layer.merged_weight(), requires_grad=False)
        if layer.bias is not None:
            linear.bias = torch.nn.Parameter(layer.bias, requires_grad=False)
        network.model.set_submodule(path, linear)
    save_model(network.model.to(getattr(torch, dtype)), network.tokenizer, directory)
