"""What an artefact holds, after every byte of it was verified."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from shearling.artefact import MANIFEST, MANIFEST_SCHEMA, Artefact, Manifest, open_artefact
from shearling.command_line import Result
from shearling.errors import ArtefactMissing
from shearling.strict_json import read_document

LARGEST_FILES = 12


def inspect_artefact(path: Path) -> Result:
    """Verify an artefact of any kind and describe it.

    Raises:
        ArtefactMissing: no artefact here; names those below, where `path` is a run.
        ArtefactCorrupt, DocumentInvalid: see `open_artefact`.
    """
    if not (path / MANIFEST).is_file():
        below = sorted(item.parent.name for item in path.glob(f"*/{MANIFEST}")) if path.is_dir() else []
        remedy = (
            f"Inspect one of: {', '.join(str(path / name) for name in below)}"
            if below
            else "Give a directory that a stage has written"
        )
        raise ArtefactMissing(f"not an artefact: {MANIFEST} is missing", where=path, remedy=remedy)
    kind = read_document(path / MANIFEST, Manifest, schema=MANIFEST_SCHEMA).kind
    artefact = open_artefact(path, kind=kind)
    manifest = artefact.manifest
    data: dict[str, Any] = {
        "path": str(path),
        "verified": True,
        "manifest_sha256": artefact.sha256,
        "bytes": sum(entry.bytes for entry in manifest.files.values()),
        "manifest": manifest.model_dump(mode="json", by_alias=True),
    }
    return Result(data, _screen(artefact, total_bytes=data["bytes"]))


def _screen(artefact: Artefact, *, total_bytes: int) -> RenderableType:
    manifest = artefact.manifest
    title = escape(f"{artefact.path}: {manifest.kind}, verified")
    facts = Table(title=title, title_justify="left", show_header=False)
    facts.add_column("what", no_wrap=True)
    facts.add_column("found", overflow="fold")
    facts.add_row("created", manifest.created)
    facts.add_row("by", Text(" ".join(manifest.command)))
    facts.add_row("seed", "none" if manifest.seed is None else str(manifest.seed))
    for role, digest in manifest.parents.items():
        facts.add_row(escape(f"made from {role}"), digest)
    for name, value in manifest.details.items():
        facts.add_row(escape(name), Text(_short(value)))
    facts.add_row("tools", ", ".join(f"{name} {version}" for name, version in manifest.tools.items()))
    facts.add_row("manifest sha256", artefact.sha256)

    files = Table(title=f"{len(manifest.files)} files, {_size(total_bytes)}", title_justify="left")
    files.add_column("file", overflow="fold")
    files.add_column("size", justify="right", no_wrap=True)
    files.add_column("sha256", no_wrap=True)
    largest = sorted(manifest.files.items(), key=lambda item: (-item[1].bytes, item[0]))
    for name, entry in largest[:LARGEST_FILES]:
        files.add_row(escape(name), _size(entry.bytes), entry.sha256[:16])
    if len(largest) > LARGEST_FILES:
        files.caption = f"and {len(largest) - LARGEST_FILES} smaller ones"
    return Group(facts, files)


def _short(value: Any, *, limit: int = 300) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= limit else f"{text[:limit]} ..."


def _size(count: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"
