"""How many tokens a recipe makes a model read at once, against the positions that it has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from shearling.errors import RecipeInvalid
from shearling.model.checkpoint import load_tokenizer
from shearling.model.context_length import read_context_length, stated_length
from shearling.recipe.recipe import Recipe
from shearling.recipe.task import TaskSection
from train.calibration import calibration_sections
from train.super_adapter.tokenised_rows import PAD_MULTIPLE

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_positions(recipe: Recipe, model: PreTrainedModel, base: Path) -> None:
    """Refuse rows, calibration windows and generated texts that are longer than what the model reads.

    A model that computes its positions would go on behind the last one, in silence, where it has learnt nothing.

    Args:
        recipe: validated.
        model: of the base, on any device, also meta.
        base: its directory.

    Raises:
        RecipeInvalid: something is too long; names the key.
    """
    positions: int | None = getattr(model.config, "max_position_embeddings", None)
    if positions is not None:
        usable = stated_length(model.config.to_dict()) or positions
        # What pads a batch needs places in the table as well, unless it has one of its own.
        longest_row = usable if usable < positions else positions - positions % PAD_MULTIPLE
        for key, length in row_lengths(recipe).items():
            _check(key, f"rows of up to {length} tokens", length, longest_row)
        for name, section in calibration_sections(recipe).items():
            _check(f"{name}.seq_len", f"windows of {section.seq_len} tokens", section.seq_len, usable)
    _check_generation(recipe, base)


def row_lengths(recipe: Recipe) -> dict[str, int]:
    """Most tokens of a row of each task that is learnt, by the key that says so."""
    if recipe.adapter is None:
        return {}
    return {f"{_place(recipe, section)}.max_length": section.max_length for section in recipe.tasks}


def _check_generation(recipe: Recipe, base: Path) -> None:
    generating = [section for section in recipe.tasks if section.answer is not None]
    # A prompt takes a token at least.
    most = read_context_length(base, load_tokenizer(base)) - 1 if generating else 0
    for section in generating:
        key, length = f"{_place(recipe, section)}.max_new_tokens", section.max_new_tokens
        _check(key, f"up to {length} generated tokens behind a prompt", length, most)


def _place(recipe: Recipe, section: TaskSection) -> str:
    return "task" if section is recipe.task else f"data.{section.name}"


def _check(key: str, what: str, length: int, most: int) -> None:
    if length > most:
        raise RecipeInvalid(
            f"{what}, the model has {most} positions for them", where=key, remedy=f"Give {most} or less"
        )
