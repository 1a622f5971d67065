"""Artefacts: directories that are complete or absent, and proven by a manifest.

A writer works in the hidden sibling `.NAME.partial`, syncs every file, writes `manifest.json` last, and renames. One
writer at a time: an advisory lock on `.NAME.lock`. What a killed writer left behind is swept by the next one, or
continued, where the work can resume. A reader verifies every byte against the manifest before anything is loaded.

A writer's steps, what is on disk after each, and what `_recover` does with it where the writer was killed there:

| step                 | NAME | .NAME.partial       | .NAME.scratch | .NAME.old | `_recover`                 |
|----------------------|------|---------------------|---------------|-----------|----------------------------|
| half of the files    | old  | half                | -             | -         | leaves it                  |
| the manifest         | old  | whole, with scratch | -             | -         | leaves it                  |
| scratch is moved out | old  | whole               | scratch       | -         | moves scratch back         |
| old is moved aside   | -    | whole               | scratch       | old       | the same; old becomes NAME |
| new is renamed       | new  | -                   | scratch       | old       | removes scratch and old    |
| old is removed       | new  | -                   | scratch       | -         | removes scratch            |

The next writer then goes on in the partial where its work can resume, and removes it otherwise. Without `force` there
is no old artefact; without scratch that column stays empty. What is removed becomes .NAME.removed first, which the next
writer sweeps.
"""

from __future__ import annotations

import datetime
import fcntl
import functools
import hashlib
import importlib.metadata
import os
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pydantic

import shearling
from shearling.destination import require_directory
from shearling.errors import (
    ArtefactCorrupt,
    ArtefactMismatch,
    ArtefactMissing,
    DocumentInvalid,
    OutputExists,
    OutputLocked,
    ResourceExhausted,
)
from shearling.strict_json import Document, read_document, write_document

MANIFEST = "manifest.json"
MANIFEST_SCHEMA = "shearling.manifest/1"
READ_SUFFIXES = {".safetensors", ".bin", ".json", ".jsonl", ".jinja", ".model", ".xml", ".onnx", ".data", ".gguf"}
READ_NAMES = {"vocab.txt", "merges.txt"}
"""Of files that readers of models and tasks look for by name, or take from an index that names them."""
TOOLS = ("torch", "transformers", "peft", "nncf", "openvino", "onnxruntime", "optimum-intel", "lm_eval", "pymoo")

Kind = Literal["task", "base", "sparse", "variants", "super_adapter", "search", "latency", "export", "benchmark"]


class FileEntry(Document):
    """Size and digest of one file."""

    sha256: str = pydantic.Field(pattern="^[0-9a-f]{64}$")
    bytes: int = pydantic.Field(ge=0)


class Manifest(Document):
    """The content of `manifest.json`.

    Attributes:
        parents: name -> sha256 of the manifest of an artefact this one was made from.
        tools: package -> version, as installed when it was made.
        details: what is specific to the kind, such as the recipe section that made it.
    """

    schema_: Literal["shearling.manifest/1"] = pydantic.Field("shearling.manifest/1", alias="schema")
    kind: Kind
    created: str
    files: dict[str, FileEntry]
    parents: dict[str, str]
    tools: dict[str, str]
    seed: int | None
    command: tuple[str, ...]
    details: dict[str, Any]

    @pydantic.field_validator("files")
    @classmethod
    def _inside(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        for name in files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or name == MANIFEST:
                raise ValueError(f"{name!r} is not a path inside the artefact")
        return files


@dataclass(frozen=True)
class Artefact:
    """A verified artefact.

    Attributes:
        path: its directory; never `.` or `..`, see `named_path`.
        sha256: digest of its manifest; stands for all of its content.
    """

    path: Path
    manifest: Manifest
    sha256: str


@dataclass
class Draft:
    """An artefact being written; fill `directory`, and put kind-specific facts into `details`."""

    directory: Path
    details: dict[str, Any] = field(default_factory=dict)
    _sealed: Artefact | None = field(default=None, init=False, repr=False)

    @property
    def sealed(self) -> Artefact:
        """The artefact that this became, as it was hashed when it was written; after the `with` block alone."""
        if self._sealed is None:
            raise ValueError("the artefact is not written yet")
        return self._sealed


def open_artefact(path: Path, *, kind: Kind, only: Collection[str] | None = None) -> Artefact:
    """Verify an artefact byte for byte.

    Args:
        path: its directory.
        kind: what it must hold.
        only: verify these files alone, for a reader that must not touch the others.

    Raises:
        ArtefactMissing: no directory, or no manifest in it.
        DocumentInvalid: the manifest is malformed.
        ArtefactCorrupt: a file is missing, is a link, or has another size or digest; or there is one that no manifest
            lists, and a reader of models would take for a part of this one.
        ArtefactMismatch: it is of another kind.
    """
    path = named_path(path)
    if not path.is_dir():
        raise ArtefactMissing(f"no {kind} artefact here", where=path, remedy=_how_to_make(kind))
    manifest_path = path / MANIFEST
    if not manifest_path.is_file():
        raise ArtefactMissing(f"not a {kind} artefact: {MANIFEST} is missing", where=path, remedy=_how_to_make(kind))
    manifest = read_document(manifest_path, Manifest, schema=MANIFEST_SCHEMA)
    if manifest.kind != kind:
        raise ArtefactMismatch(f"a {manifest.kind} artefact, expected {kind}", where=path)
    if only is not None and not set(only) <= manifest.files.keys():
        absent = sorted(set(only) - manifest.files.keys())[0]
        raise ArtefactMismatch(f"this {kind} artefact has no {absent}", where=path, remedy=_how_to_make(kind))
    for name in manifest.files if only is None else sorted(only):
        _verify_file(path, name, manifest.files[name])
    for name in sorted(set(list_files(path)) - manifest.files.keys()):
        if _would_be_read(PurePosixPath(name)):
            raise ArtefactCorrupt(
                "no manifest lists it, and who reads this model might take it for a part",
                where=path / name,
                remedy="Move it away",
            )
    return Artefact(path, manifest, sha256_file(manifest_path))


@contextmanager
def write_artefact(
    path: Path,
    *,
    kind: Kind,
    parents: Mapping[str, Artefact] | None = None,
    seed: int | None = None,
    force: bool = False,
    resumable: bool = False,
    scratch: Collection[str] = (),
) -> Iterator[Draft]:
    """Write an artefact that appears at `path` complete, or not at all.

    Args:
        path: where it will stand.
        kind: what it holds.
        parents: the artefacts it is made from, by role.
        seed: the seed that its content depends on, if any.
        force: replace an artefact of the same kind that is already there.
        resumable: keep unfinished work after a failure, and find it again in `Draft.directory`.
        scratch: names there of files and directories that only help to resume; they go when the artefact stands.

    Raises:
        OutputExists: `path` exists and `force` is false, or it holds files that no manifest lists, an artefact of
            another kind, or a parent. Where they came while the artefact was being written, it is kept beside them,
            complete.
        OutputLocked: another process is writing it.
        ResourceExhausted: the disk is full; what stood at `path` before is intact.
    """
    path = named_path(path)
    inputs = [parent.path for parent in (parents or {}).values()]
    check = functools.partial(check_destination, kind=kind, force=force, inputs=inputs)
    check(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = unfinished_artefact(path)
    with _exclusive(path):
        _recover(path)
        check(path)
        if not resumable:
            shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(exist_ok=True)
        draft = Draft(partial)
        try:
            yield draft
            manifest = _seal(draft, kind=kind, parents=parents or {}, seed=seed, scratch=scratch)
            draft._sealed = Artefact(path, manifest, sha256_file(partial / MANIFEST))
            _move_scratch_out(path, scratch)
            _check_still_replaceable(path, check)
            _replace(path, partial, force=force)
            shutil.rmtree(_scratch_path(path), ignore_errors=True)
        except BaseException as error:
            # What is sealed is whole: whatever kept it from its place, it is not lost.
            if not resumable and draft._sealed is None:
                shutil.rmtree(partial, ignore_errors=True)
            fault = _disk_fault(error, path)
            if fault is not None:
                raise fault from error
            raise


def named_path(path: Path) -> Path:
    """The path itself; of `.` and `..`, which have neither a name nor a parent that is the one above, the absolute one.

    An artefact has its siblings around it: those of its run, and what a writer leaves beside it.
    """
    return path.resolve() if path.name in ("", "..") else path


def holds_artefact(path: Path) -> bool:
    """Whether a directory has a manifest, whatever else is there; none of it is looked at."""
    return _readable_manifest(path) is not None


def unfinished_artefact(path: Path) -> Path:
    """Where the artefact that will stand at `path` is being written."""
    return path.with_name(f".{path.name}.partial")


def check_destination(path: Path, *, kind: Kind, force: bool, inputs: Iterable[Path] = ()) -> None:
    """Refuse early what `write_artefact` would refuse late.

    Args:
        path: where an artefact will stand.
        kind: what it will hold.
        force: replace one of that kind.
        inputs: files and directories that it is made from; it may neither hold them nor lie in them.

    Raises:
        OutputExists: see `write_artefact`.
        UsageError: nothing can be written beside it.
    """
    require_directory(path.parent)
    inputs = [item.resolve() for item in inputs]
    for item in inputs:
        if item != path.resolve() and path.resolve().is_relative_to(item):
            raise OutputExists("lies in what it is made from", where=path, remedy="Choose another place")
    if not path.exists() and not path.is_symlink():
        return
    there = _readable_manifest(path)
    if there is not None and there.kind != kind:
        raise OutputExists(
            f"holds an artefact of kind {there.kind}, not {kind}", where=path, remedy="Choose another place"
        )
    if not force:
        raise OutputExists("the output exists", where=path, remedy="Choose another, or replace it with --force")
    _check_listed(path)
    for item in inputs:
        if item.is_relative_to(path.resolve()):
            raise OutputExists(
                f"holds what the output is made from ({item})", where=path, remedy="Choose another place"
            )


def check_unlocked(path: Path) -> None:
    """Refuse early what `write_artefact` would refuse late.

    Raises:
        OutputLocked: another process is writing it.
    """
    if path.with_name(f".{path.name}.lock").exists():
        with _exclusive(path):
            pass


def remove_artefact(path: Path, *, unfinished: bool = False) -> None:
    """Remove exactly the files that the manifest of `path` lists, and the directories this leaves empty.

    Args:
        path: of the artefact, which need not exist.
        unfinished: remove what is unfinished of it as well.

    Raises:
        OutputExists: it holds files that no manifest lists.
        OutputLocked: another process is writing it.
    """
    _check_listed(path)
    left = [path, *([unfinished_artefact(path)] if unfinished else [])]
    if not any(item.exists() for item in left):
        return
    with _exclusive(path):
        for item in left:
            if item.exists():
                # Whoever is killed on the way leaves nothing at the old place that no manifest lists.
                shutil.rmtree(_removed_path(path), ignore_errors=True)
                item.rename(_removed_path(path))
                _sync(path.parent)
        shutil.rmtree(_removed_path(path))


def sha256_file(path: Path) -> str:
    """Hex digest of a file, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def list_files(directory: Path) -> list[str]:
    """Every regular file below `directory`, as sorted POSIX paths relative to it."""
    return sorted(
        item.relative_to(directory).as_posix() for item in directory.rglob("*") if item.is_file() or item.is_symlink()
    )


def installed_tools() -> dict[str, str]:
    """Versions of the packages that decide what an artefact contains."""
    own = {"python": ".".join(map(str, sys.version_info[:3])), "shearling": shearling.__version__}
    return own | package_versions(TOOLS)


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of those packages of these that are installed."""
    versions = {}
    for name in names:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def utc_now() -> str:
    """The time as ISO 8601 in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _seal(
    draft: Draft, *, kind: Kind, parents: Mapping[str, Artefact], seed: int | None, scratch: Collection[str]
) -> Manifest:
    _remove_half_documents(draft.directory)
    unlisted = {MANIFEST, *scratch}
    names = [name for name in list_files(draft.directory) if PurePosixPath(name).parts[0] not in unlisted]
    files = {}
    for name in names:
        file = draft.directory / name
        _sync(file)
        files[name] = FileEntry(sha256=sha256_file(file), bytes=file.stat().st_size)
    manifest = Manifest(
        kind=kind,
        created=utc_now(),
        files=files,
        parents={name: parent.sha256 for name, parent in parents.items()},
        tools=installed_tools(),
        seed=seed,
        command=tuple(map(_as_utf8, (*_program(), *sys.argv[1:]))),
        details=draft.details,
    )
    write_document(draft.directory / MANIFEST, manifest)
    _sync(draft.directory)
    return manifest


def _program() -> tuple[str, ...]:
    """How this process was started: a command of an installation, or `python -m MODULE`."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return (Path(sys.argv[0]).name,) if spec is None else ("python", "-m", spec.name.removesuffix(".__main__"))


def _removed_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.removed")


def _as_utf8(argument: str) -> str:
    r"""With bytes that are no UTF-8, which names of files may have, written as `\xe9`: a document holds characters."""
    return os.fsencode(argument).decode("utf-8", "backslashreplace")


def _remove_half_documents(directory: Path) -> None:
    """What a writer of documents left that was killed, in work that was resumed since; see `whole_file`."""
    for half in directory.rglob(".*.tmp-*"):
        half.unlink()


def _move_scratch_out(path: Path, scratch: Collection[str]) -> None:
    """Move what only helps to resume out of the unfinished artefact, from where `_recover` can bring it back."""
    partial, outside = unfinished_artefact(path), _scratch_path(path)
    for name in scratch:
        if (partial / name).exists():
            outside.mkdir(exist_ok=True)
            (partial / name).rename(outside / name)


def _check_still_replaceable(path: Path, check: Callable[[Path], None]) -> None:
    """Refuse what came to `path` while the artefact was being written, which may have taken hours."""
    try:
        check(path)
    except OutputExists as error:
        raise OutputExists(
            f"{error.message}, which came while it was being written",
            where=path,
            remedy=f"Move that away, and rename what was written to {path.name}: {unfinished_artefact(path)}",
        ) from None


def _replace(path: Path, partial: Path, *, force: bool) -> None:
    if force and path.exists():
        old = _old_path(path)
        path.rename(old)
        partial.rename(path)
        shutil.rmtree(old)
    else:
        partial.rename(path)
    _sync(path.parent)


def _recover(path: Path) -> None:
    """Undo a replacement that was killed between its renames; sweep one that was killed after them."""
    partial, scratch, old = unfinished_artefact(path), _scratch_path(path), _old_path(path)
    if partial.is_dir() and scratch.is_dir():
        for item in scratch.iterdir():
            item.rename(partial / item.name)
    for swept in (scratch, _removed_path(path)):
        shutil.rmtree(swept, ignore_errors=True)
    if old.is_dir():
        if path.exists():
            shutil.rmtree(old)
        else:
            old.rename(path)


def _old_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _scratch_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.scratch")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    lock = path.with_name(f".{path.name}.lock")
    with lock.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The previous owner may have removed the file between our open and our lock: then it guards nothing.
            owned = lock.exists() and os.fstat(stream.fileno()).st_ino == lock.stat().st_ino
        except BlockingIOError:
            owned = False
        if not owned:
            raise OutputLocked(
                "another process is writing this artefact", where=path, remedy="Wait for it, or write elsewhere"
            ) from None
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _check_listed(path: Path) -> None:
    strangers = _unlisted(path) if path.exists() or path.is_symlink() else []
    if strangers:
        shown = ", ".join(strangers[:5])
        raise OutputExists(
            f"holds files that no manifest lists ({shown})",
            where=path,
            remedy="Move them away; --force removes only what a manifest lists",
        )


def _unlisted(path: Path) -> list[str]:
    if path.is_symlink() or not path.is_dir():
        return [path.name]
    manifest = _readable_manifest(path)
    listed = set() if manifest is None else {MANIFEST, *manifest.files}
    return [name for name in list_files(path) if name not in listed]


def _would_be_read(name: PurePosixPath) -> bool:
    """Whether some reader of models looks for such a file; where tools keep their own, in `.cache` say, none does."""
    if any(part.startswith(".") for part in name.parts) or name.name == MANIFEST:
        return False
    return name.suffix in READ_SUFFIXES or name.name in READ_NAMES


def _readable_manifest(path: Path) -> Manifest | None:
    """None where there is none, or a malformed one."""
    if not (path / MANIFEST).is_file():
        return None
    try:
        return read_document(path / MANIFEST, Manifest)
    except DocumentInvalid:
        return None


def _verify_file(root: Path, name: str, entry: FileEntry) -> None:
    file = root / name
    if file.is_symlink() or not file.is_file() or not file.resolve().is_relative_to(root.resolve()):
        raise ArtefactCorrupt(
            "listed in the manifest, but missing or a link", where=file, remedy="Make the artefact again"
        )
    size_bytes = file.stat().st_size
    if size_bytes != entry.bytes:
        raise ArtefactCorrupt(
            f"{size_bytes} bytes, the manifest says {entry.bytes}", where=file, remedy="Make the artefact again"
        )
    if sha256_file(file) != entry.sha256:
        raise ArtefactCorrupt(
            "content differs from the manifest (sha256)", where=file, remedy="Make the artefact again"
        )


def _disk_fault(error: BaseException, path: Path) -> ResourceExhausted | None:
    # safetensors, OpenVINO, torch and numpy ("6000 requested and 0 written") each hide "no space left" in an exception
    # of their own, or in one without a reason.
    signs = (
        "No space left",
        "File too large",
        "iostream error",
        "Disk quota",
        "os error 28",
        "os error 27",
        "requested and",
    )
    if isinstance(error, ResourceExhausted) or not any(sign in str(link) for link in _chain(error) for sign in signs):
        return None
    free_bytes = shutil.disk_usage(path.parent).free
    return ResourceExhausted(
        f"cannot write ({free_bytes} bytes free): {error}",
        where=path,
        remedy="Free disk space and run the same command again",
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    # torch.save fails twice: its clean-up hides the first error behind another one.
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _how_to_make(kind: Kind) -> str:
    stages = {"search": "search", "latency": "search latency", "export": "export", "benchmark": "serve bench"}
    stage = stages.get(kind, "train")
    return f"Make it with: python -m {stage}"
