"""Where the files of an export that broke a gate are kept."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

import pydantic

from shearling.artefact import list_files
from shearling.console import log
from shearling.errors import ArtefactError
from shearling.strict_json import Document, read_document, write_document

REJECTED = "rejected.json"


class RejectedFiles(Document):
    """The content of `rejected.json`: what an export wrote, which the next rejected one may replace.

    It is no manifest: nothing that was rejected passes for an artefact.
    """

    schema_: Literal["shearling.rejected/1"] = pydantic.Field("shearling.rejected/1", alias="schema")
    files: tuple[str, ...]


def keep_rejected(directory: Path, output: Path, *, leave: str) -> Path:
    """Move the files of an export out of its draft, to `OUTPUT.rejected`.

    An earlier rejected export there is replaced; where it holds other files than its own, it stays, and the name gets
    a number.

    Args:
        directory: the draft, which loses them.
        output: where the export would have stood.
        leave: begins the names of what is not of the export.

    Returns:
        Where they are.
    """
    rejected, number = output.with_name(f"{output.name}.rejected"), 1
    while _holds_others(rejected):
        number += 1
        rejected = output.with_name(f"{output.name}.rejected-{number}")
    if rejected.exists():
        log.print(f"replacing {rejected}, an earlier export that was rejected")
        shutil.rmtree(rejected)
    rejected.mkdir()
    files = tuple(name for name in list_files(directory) if not name.startswith(leave))
    write_document(rejected / REJECTED, RejectedFiles(files=files))
    # Moved, not linked or copied: there may be no hard links, and no room for a second copy.
    for item in list(directory.iterdir()):
        if not item.name.startswith(leave):
            item.rename(rejected / item.name)
    return rejected


def _holds_others(rejected: Path) -> bool:
    """Whether something is there that no export wrote."""
    if not rejected.exists() and not rejected.is_symlink():
        return False
    try:
        listed = read_document(rejected / REJECTED, RejectedFiles).files
    except ArtefactError:
        return True
    return rejected.is_symlink() or not set(list_files(rejected)) <= {*listed, REJECTED}
