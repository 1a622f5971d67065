"""The dense model that teaches: found, checked against the student, loaded without gradients."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from shearling.artefact import Artefact
from shearling.errors import ArtefactMissing, RecipeInvalid
from shearling.model.checkpoint import load_model, load_tokenizer
from shearling.model.checkpoint_safety import check_checkpoint
from shearling.recipe.training import TeacherSection
from train.base.artefact import source_digest

if TYPE_CHECKING:
    from train.super_adapter.taught_loss import Teacher


Dtype = Literal["float32", "bfloat16"]


def teacher_digest(section: TeacherSection, base: Artefact) -> str:
    """What identifies the teacher's weights; arguments as for `load_teacher`.

    Raises:
        ArtefactMissing: there is no such model.
    """
    if section.path is None:
        return base.sha256
    check_teacher_there(section)
    return source_digest(section.path)


def check_teacher_there(section: TeacherSection) -> None:
    """See that there is a model where the section names one.

    Raises:
        ArtefactMissing: there is none.
    """
    if section.path is not None and not section.path.is_dir():
        raise ArtefactMissing("no such teacher", where=section.path, remedy="Give a local Hugging Face directory")


def check_teacher(section: TeacherSection, base: Path) -> None:
    """See that the teacher of a section can teach a model; no weight is loaded.

    Args:
        section: names it, or leaves it to be the base.
        base: directory of the model.

    Raises:
        ArtefactError: there is no such model, or it is damaged.
        RecipeInvalid: it reads other tokens than the student, or hidden states are to be compared that differ in width.
    """
    from transformers import AutoConfig

    directory, where = section.path, "train.teacher"
    if directory is None:
        return
    check_teacher_there(section)
    check_checkpoint(directory)
    if load_tokenizer(directory).get_vocab() != load_tokenizer(base).get_vocab():
        raise RecipeInvalid(
            f"the teacher {directory.name} has another vocabulary than the model that it is to teach",
            where=where,
            remedy="Give a fine-tuned copy of the base, or leave path out",
        )
    teacher, student = (
        AutoConfig.from_pretrained(str(path), local_files_only=True, trust_remote_code=False).hidden_size
        for path in (directory, base)
    )
    if section.hidden and teacher != student:
        raise RecipeInvalid(
            f"hidden states of {teacher} cannot be compared with {student}",
            where=f"{where}.hidden",
            remedy="Set it to 0",
        )


def load_teacher(section: TeacherSection, base: Artefact, *, precision: str) -> Teacher:
    """Load the teacher of a super-network, which `check_teacher` has passed.

    Args:
        section: names it, or leaves it to be the base.
        base: the dense model of the run.
        precision: bf16 holds it in two bytes a weight.

    Raises:
        ArtefactError: there is no such model, or it is damaged.
    """
    from train.super_adapter.taught_loss import Teacher

    dtype: Dtype = "bfloat16" if precision == "bf16" else "float32"
    model = load_model(base.path if section.path is None else section.path, dtype=dtype)
    model.requires_grad_(False)
    return Teacher(model, section)
