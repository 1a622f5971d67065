"""Windows of tokens, cut from texts at random places."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shearling.errors import ArtefactMissing, DocumentInvalid

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def read_texts(path: Path, field: str | None = None, *, remedy: str) -> list[str]:
    """The texts of a file: the whole of it, or one key of every line of JSON.

    Args:
        path: in UTF-8.
        field: the key; None for a plain text.
        remedy: what the user can do where it is missing.

    Raises:
        ArtefactMissing: there is no such file.
        DocumentInvalid: a line is no JSON with that key.
    """
    if not path.is_file():
        raise ArtefactMissing("no such calibration text", where=path, remedy=remedy)
    text = path.read_text(encoding="utf-8")
    if field is None:
        return [text]
    try:
        return [str(json.loads(line)[field]) for line in text.splitlines() if line.strip()]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise DocumentInvalid(f"no JSON with the key {field!r} on every line: {error!r}", where=path) from None


def token_stream(texts: Sequence[str], tokenizer: Any) -> Tensor:
    """All texts behind each other, [tokens] int64, with the end of text behind each where the tokenizer has one."""
    import torch

    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids = [token for encoded in tokenizer(list(texts))["input_ids"] for token in (*encoded, *end)]
    return torch.tensor(ids)


def draw_windows(streams: Sequence[Tensor], *, samples: int, seq_len: int, seed: int) -> list[Tensor]:
    """Cut contiguous windows at random places, from several streams by turns, so that a batch holds windows of all.

    Args:
        streams: [tokens] each, of at least `seq_len` tokens.
        samples: windows.
        seq_len: tokens of a window.
        seed: places them.

    Returns:
        `samples` tensors [seq_len] int64.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    shares = [len(range(place, samples, len(streams))) for place in range(len(streams))]
    drawn = [
        [stream[start : start + seq_len] for start in _starts(stream, seq_len, share, generator)]
        for stream, share in zip(streams, shares, strict=True)
    ]
    return [drawn[index % len(streams)][index // len(streams)] for index in range(samples)]


def _starts(stream: Tensor, length: int, count: int, generator: torch.Generator) -> list[int]:
    import torch

    starts: list[int] = torch.randint(stream.numel() - length + 1, (count,), generator=generator).tolist()
    return starts
