"""The artefact that a model is, or is a part of, verified before anything of it is loaded."""

from __future__ import annotations

from pathlib import Path

from shearling.artefact import MANIFEST, MANIFEST_SCHEMA, Artefact, Manifest, open_artefact
from shearling.errors import ArtefactError, ArtefactMismatch
from shearling.strict_json import read_document, read_json

RUNNABLE_KINDS = ("export", "base", "sparse")


def has_manifest(directory: Path) -> bool:
    """Whether a directory has a manifest of this project; other programs have files of that name."""
    path = directory / MANIFEST
    if not path.is_file():
        return False
    ours = MANIFEST_SCHEMA.partition("/")[0]
    try:
        schema = read_json(path).get("schema")
    except (ArtefactError, AttributeError):
        # Ours, perhaps, and damaged: whoever opens it says how.
        return True
    return isinstance(schema, str) and schema.startswith(ours)


def _is_above_its_files(directory: Path) -> bool:
    """Whether the manifest of a directory is of this project, by what is left of it."""
    ours = MANIFEST_SCHEMA.partition("/")[0].encode()
    return ours in (directory / MANIFEST).read_bytes()


def open_model_artefact(path: Path) -> Artefact | None:
    """Verify the artefact that a directory is, or is a part of (`RUN/export/openvino`); None for a bare directory.

    Raises:
        DocumentInvalid: the manifest is malformed.
        ArtefactCorrupt: a file differs from the manifest.
        ArtefactMismatch: it is of a kind that does not run.
    """
    for root in (path, path.resolve().parent):
        if not has_manifest(root) or (root != path and not _is_above_its_files(root)):
            continue
        manifest = read_document(root / MANIFEST, Manifest)
        if root != path and not any(name.startswith(f"{path.resolve().name}/") for name in manifest.files):
            continue
        if manifest.kind not in RUNNABLE_KINDS:
            raise ArtefactMismatch(
                f"a {manifest.kind} artefact, which does not run",
                where=root,
                remedy=f"Give one of: {', '.join(RUNNABLE_KINDS)}",
            )
        return open_artefact(root, kind=manifest.kind)
    return None
