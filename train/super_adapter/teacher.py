"""The dense model that teaches: found, checked against the student, loaded without gradients."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from shearling.artefact import Artefact
from shearling.errors import ArtefactMissing, RecipeInvalid
from shearling.model.checkpoint import load_model, load_tokenizer
from shearling.recipe.training import TeacherSection
from train.base.artefact import source_digest

if TYPE_CHECKING:
    from shearling.elastic.super_network import SuperNetwork
    from train.super_adapter.taught_loss import Teacher


Dtype = Literal["float32", "bfloat16"]


def teacher_digest(section: TeacherSection, base: Artefact) -> str:
    """What identifies the teacher's weights; arguments as for `load_teacher`.

    Raises:
        ArtefactMissing: there is no such model.
    """
    if section.path is None:
        return base.sha256
    if not section.path.is_dir():
        raise ArtefactMissing("no such teacher", where=section.path, remedy="Give a local Hugging Face directory")
    return source_digest(section.path)


def load_teacher(section: TeacherSection, base: Artefact, network: SuperNetwork, *, precision: str) -> Teacher:
    """Load the teacher of a super-network.

    Args:
        section: names it, or leaves it to be the base.
        base: the dense model of the run.
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
    model = load_model(directory, dtype=dtype)
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
