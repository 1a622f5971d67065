"""Windows of tokens, cut from texts at random places."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shearling.errors import ArtefactMissing, DocumentInvalid
from shearling.model.text_encoder import TextEncoder
from shearling.strict_json import check_characters

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
        DocumentInvalid: it is not UTF-8, or a line is no JSON with a text at that key.
    """
    if not path.is_file():
        raise ArtefactMissing("no such calibration text", where=path, remedy=remedy)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DocumentInvalid(
            f"not UTF-8 at byte {error.start}", where=path, remedy="Convert it, as with: iconv -t UTF-8"
        ) from None
    if field is None:
        return [text]
    # Not splitlines: strings of JSON may hold U+2028 and other ends of lines that Unicode has.
    lines = enumerate(text.split("\n"), start=1)
    return [_field(line, field, where=f"{path}, line {number}") for number, line in lines if line.strip()]


def _field(line: str, field: str, *, where: str) -> str:
    try:
        found = json.loads(line)[field]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise DocumentInvalid(
            f"no JSON with the key {field!r}: {error!r}",
            where=where,
            remedy="Give an object with it a line",
        ) from None
    if found is None or isinstance(found, (list, dict)):
        raise DocumentInvalid(f"no text at the key {field!r}: {found!r}", where=where, remedy="Leave the line out")
    text = str(found)
    check_characters(text, where=where)
    return text


def token_stream(texts: Sequence[str], tokenizer: Any) -> Tensor:
    """All texts behind each other, [tokens] int64: each begins as the model's texts begin, once, and ends with the end
    of text where the tokenizer has one.
    """
    import torch

    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids = [token for encoded in TextEncoder(tokenizer).batch(texts) for token in (*encoded, *end)]
    return torch.tensor(ids, dtype=torch.int64)


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
