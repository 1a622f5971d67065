"""The dense model that teaches: found or adapted first, checked against the student, loaded without gradients."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from shearling.artefact import Artefact
from shearling.elastic.search_space import SEARCH_SPACE_FILE, read_search_space
from shearling.elastic.super_network import assemble_super_network
from shearling.errors import RecipeInvalid
from shearling.model.checkpoint import load_model, load_tokenizer
from shearling.recipe.recipe import Recipe
from shearling.recipe.search import SearchSection
from shearling.recipe.training import TeacherSection
from train.base.artefact import source_digest

if TYPE_CHECKING:
    from shearling.elastic.super_network import SuperNetwork
    from train.super_adapter.taught_loss import Teacher


Dtype = Literal["float32", "bfloat16"]


def teacher_digest(section: TeacherSection, base: Artefact, adapted: Artefact | None) -> str:
    """What identifies the teacher's weights; arguments as for `load_teacher`."""
    if adapted is not None:
        return adapted.sha256
    return base.sha256 if section.path is None else source_digest(section.path)


def adapting_recipe(recipe: Recipe) -> Recipe | None:
    """The recipe of the LoRA that makes a teacher of the dense base; None where the teacher needs none.

    The largest rank alone, without mask or grid, as many steps at the same rate; the base itself keeps its language.
    """
    adapter, train = recipe.adapter, recipe.train
    if adapter is None or train is None or train.teacher is None or not train.teacher.adapted:
        return None
    groups = tuple(group.model_copy(update={"ranks": group.ranks[:1]}) for group in adapter.groups)
    plain = {"masked": False, "scaling": "constant", "groups": groups}
    prompt = train.teacher.prompt
    one = {
        "draw": "independent",
        "largest_first": 0.0,
        "sandwich": False,
        "teacher": TeacherSection(prompt=prompt) if prompt else None,
    }
    without = dict.fromkeys(("sparsity", "quantization", "width"))
    return recipe.model_copy(
        update={
            **without,
            "name": "teacher",
            "adapter": adapter.model_copy(update=plain),
            "train": train.model_copy(update=one),
            "search": SearchSection(),
        }
    )


def load_teacher(
    section: TeacherSection, base: Artefact, adapted: Artefact | None, network: SuperNetwork, *, precision: str
) -> Teacher:
    """Load the teacher of a super-network.

    Args:
        section: names it, or leaves it to be the base.
        base: the dense model of the run.
        adapted: the adapter that makes the base the teacher; None where none does.
        network: the student.
        precision: bf16 holds it in two bytes a weight.

    Raises:
        ArtefactError: there is no such model, or it is damaged.
        RecipeInvalid: it reads other tokens than the student, or hidden states are to be compared that differ in width;
            or the student is a classifier.
    """
    from train.super_adapter.taught_loss import Teacher

    where = "train.teacher"
    if network.head:
        raise RecipeInvalid(
            "a classifier has no language to keep, and learns its classes from labels",
            where=where,
            remedy="Leave it out",
        )
    directory: Path = base.path if section.path is None else section.path
    dtype: Dtype = "bfloat16" if precision == "bf16" else "float32"
    model = load_model(directory, dtype=dtype) if adapted is None else _adapted_model(base, adapted, dtype)
    if section.path is not None and load_tokenizer(directory).get_vocab() != network.tokenizer.get_vocab():
        raise RecipeInvalid(
            f"the teacher {directory.name} has another vocabulary than the model that it is to teach",
            where=where,
            remedy="Give a fine-tuned copy of the base, or leave path out",
        )
    student: Any = network.model.config
    if section.hidden and model.config.hidden_size != student.hidden_size:
        raise RecipeInvalid(
            f"hidden states of {model.config.hidden_size} cannot be compared with {student.hidden_size}",
            where=f"{where}.hidden",
            remedy="Set it to 0",
        )
    model.requires_grad_(False)
    return Teacher(model, section)


def _adapted_model(base: Artefact, adapted: Artefact, dtype: Dtype) -> Any:
    """The base with the adapter in its weights."""
    import torch
    from torch import nn

    network = assemble_super_network(base, adapted, read_search_space(adapted.path / SEARCH_SPACE_FILE))
    network.activate(network.space.maximal())
    for path, layer in network.layers.items():
        linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        linear.weight = nn.Parameter(layer.merged_weight(), requires_grad=False)
        if layer.bias is not None:
            linear.bias = nn.Parameter(layer.bias, requires_grad=False)
        network.model.set_submodule(path, linear)
    return network.model.to(getattr(torch, dtype))
