"""A model that is one file, and what lies beside it because it is too large for that file."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from pathlib import Path

LOCATION = re.compile(rb"\x0a\x08location\x12")
"""In an ONNX graph before the name of a file with external data, as protobuf writes it."""


def files_of(path: Path) -> list[Path]:
    """The file and its weights: of an IR the .bin of its name, of an ONNX graph the files that it names. None of its
    other neighbours, whatever they are called.
    """
    named: set[str] = set()
    if path.suffix == ".xml":
        named = {path.with_suffix(".bin").name}
    elif path.suffix == ".onnx":
        # As runtimes do, none that lies elsewhere.
        named = {name for name in _external_data(path) if ".." not in Path(name).parts and not Path(name).is_absolute()}
    return sorted({path, *(path.parent / name for name in named if (path.parent / name).is_file())})


def _external_data(path: Path) -> Iterator[str]:
    if path.stat().st_size == 0:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as graph:
        for found in LOCATION.finditer(graph):
            length, start = _varint(graph, found.end())
            yield graph[start : start + length].decode(errors="replace")


def _varint(graph: mmap.mmap, start: int) -> tuple[int, int]:
    """Number of at most two bytes, as long as names are, and the place behind it."""
    first, second = (*graph[start : start + 2], 0, 0)[:2]
    return (first, start + 1) if first < 0x80 else ((first & 0x7F) | second << 7, start + 2)
