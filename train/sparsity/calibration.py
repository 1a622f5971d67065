"""The token blocks that pruning measures activations on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shearling.errors import ArtefactMissing, RecipeInvalid
from shearling.evaluation.task import TaskRow
from shearling.recipe import CalibrationSection, SparsitySection

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
    import torch

    stream = _token_stream(section.path, rows, tokenizer)
    last_start = stream.numel() - section.seq_len
    if last_start < 0:
        raise RecipeInvalid(
            f"{stream.numel()} tokens of text, a window needs {section.seq_len}",
            where=f"{where}.seq_len",
            remedy="Lower it, or give more text",
        )
    starts = torch.randint(last_start + 1, (section.samples,), generator=torch.Generator().manual_seed(seed))
    return [stream[start : start + section.seq_len] for start in starts.tolist()]


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


def _token_stream(path: Path | None, rows: Sequence[TaskRow], tokenizer: Any) -> Tensor:
    import torch

    if path is None:
        texts = [row.prompt + row.completion for row in rows]
    elif path.is_file():
        texts = [path.read_text(encoding="utf-8")]
    else:
        raise ArtefactMissing(
            "no such calibration text", where=path, remedy="Check sparsity.calibration.path in the recipe"
        )
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids = [token for encoded in tokenizer(texts)["input_ids"] for token in (*encoded, *end)]
    return torch.tensor(ids)
