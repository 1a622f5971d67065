"""Windows of tokens, cut from texts at random places."""

from __future__ import annotations

import codecs
import io
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shearling.errors import ArtefactMissing, DocumentInvalid
from shearling.model.text_encoder import TextEncoder
from shearling.strict_json import check_characters

if TYPE_CHECKING:
    import torch
    from torch import Tensor


MOST_BYTES = 2**26
"""Of a file, the first that are read: some sixteen million tokens, where calibration asks for a hundred thousand."""
PIECE_CHARACTERS, BATCH_CHARACTERS = 2**24, 2**20
"""What is tokenised at once: it takes some 170 bytes a character."""


def read_texts(path: Path, field: str | None = None, *, remedy: str) -> list[str]:
    """The texts of a file: the whole of it, or one key of every line of JSON; of a long one the first `MOST_BYTES`, and
    without a key in pieces.

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
    with path.open("rb") as stream:
        if field is not None:
            return list(_fields(stream, field, path))
        data = stream.read(MOST_BYTES)
        text = _decoded(data.removeprefix(codecs.BOM_UTF8), where=str(path), cut=len(data) == MOST_BYTES)
    return [text[start : start + PIECE_CHARACTERS] for start in range(0, len(text), PIECE_CHARACTERS)]


def _fields(lines: Iterable[bytes], field: str, path: Path) -> Iterator[str]:
    size = 0
    # As bytes: strings of JSON may hold U+2028 and other ends of lines that Unicode has.
    for number, data in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        line = _decoded(data.removeprefix(codecs.BOM_UTF8) if number == 1 else data, where=where)
        if line.strip():
            yield _field(line, field, where=where)
        size += len(data)
        if size >= MOST_BYTES:
            return


def _decoded(data: bytes, *, where: str, cut: bool = False) -> str:
    # As a file that is opened as text reads it, but that of a character that is cut the beginning is left out.
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")(), translate=True)
    try:
        return decoder.decode(data, final=not cut)
    except UnicodeDecodeError as error:
        raise DocumentInvalid(
            f"not UTF-8 at byte {error.start}", where=where, remedy="Convert it, as with: iconv -t UTF-8"
        ) from None


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


def token_stream(texts: Iterable[str], tokenizer: Any) -> Tensor:
    """All texts behind each other, [tokens] int64: each begins as the model's texts begin, once, and ends with the end
    of text where the tokenizer has one.
    """
    import numpy as np
    import torch

    encoder, ids = TextEncoder(tokenizer), array("i")
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for batch in _batches(texts):
        for encoded in encoder.batch(batch):
            ids.extend((*encoded, *end))
    return torch.from_numpy(np.array(ids, dtype=np.int64))


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


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
