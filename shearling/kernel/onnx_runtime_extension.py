"""ONNX Runtime with the operator of domain `shearling`, where a graph asks for it.

The domain stands among the operator sets that a file imports, so whether it needs the library is read in the file
itself.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shearling.errors import ArtefactMissing, DeviceUnavailable, ModelUnsupported
from shearling.kernel.packed_format import VERSION
from shearling.kernel.runtime_refusal import refusals

if TYPE_CHECKING:
    import onnxruntime

DOMAIN = "shearling"
DOMAIN_VERSION = 1
OPERATOR = "SparseLinear"
# As protobuf writes it: opset_import (field 8 of a model, 13 bytes) with domain (field 1, 9 bytes) and version (field
# 2).
IMPORT = b"\x42\x0d\x0a\x09" + DOMAIN.encode() + b"\x10"

PADDING, CACHE_BUFFER = "shearling_padding", "shearling_cache"
"""Metadata of a graph with fused attention: `right`, the side that rows of a batch are padded on, and `in place`, that
a cache may be the memory of its own longer self."""


def node_attributes(rows: int, columns: int) -> dict[str, int | str]:
    """What a node says of its weight, [rows, columns]."""
    return {"rows": rows, "columns": columns, "precision": "auto", "format_version": VERSION}


def needs_operators(path: Path) -> bool:
    """Whether an ONNX graph uses our operator.

    Raises:
        ArtefactMissing: no such file.
        ModelUnsupported: it uses another version of the operator.
    """
    if not path.is_file():
        raise ArtefactMissing(
            "no ONNX model here", where=path, remedy="Export one with: python -m export --formats onnx"
        )
    if path.stat().st_size == 0:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        place = content.find(IMPORT)
        if place < 0:
            return False
        end = place + len(IMPORT)
        version = int.from_bytes(content[end : end + 1], "little")
    if version != DOMAIN_VERSION:
        raise ModelUnsupported(
            f"it uses version {version} of the operators of {DOMAIN}, this is version {DOMAIN_VERSION}",
            where=path,
            remedy="Export again, or install the version of Shearling that made it",
        )
    return True


def session_options_for(path: Path) -> onnxruntime.SessionOptions:
    """Options of a session that can read this graph: ONNX Runtime's own, and our library where it needs it; built on
    first use.

    Raises:
        ArtefactMissing: no such file.
        PackageMissing: it needs our operator, and the headers of ONNX Runtime are not installed.
        CompilerMissing: it needs our operator, which cannot be built here.
    """
    import onnxruntime

    from shearling.kernel.build import build_onnx_runtime_library

    options = onnxruntime.SessionOptions()
    if needs_operators(path):
        options.register_custom_ops_library(str(build_onnx_runtime_library()))
    return options


def open_session(path: Path) -> Any:
    """An ONNX graph on ONNX Runtime's CPU provider.

    Raises:
        DeviceUnavailable: the runtime chose another provider.
        ArtefactCorrupt: ONNX Runtime cannot read the graph.
        ArtefactMissing, PackageMissing, CompilerMissing: see `session_options_for`.
    """
    import onnxruntime

    options = session_options_for(path)
    with refusals(path):
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    if session.get_providers() != ["CPUExecutionProvider"]:
        raise DeviceUnavailable(f"ONNX Runtime uses {session.get_providers()}", where=path)
    return session
