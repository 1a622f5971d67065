"""Finding what can be run: an `export`, `base` or `sparse` artefact of ours, a bare model directory, or a model file.

An artefact is verified byte for byte first, also when the directory given is one of its parts
(`RUN/export/openvino`). Every weight file is read once for its digest, so the later load always finds warm file caches.
"""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic

from serve.runtimes.lone_file import files_of
from shearling.artefact import list_files, sha256_file
from shearling.errors import ArtefactMissing, ModelUnsupported, UsageError
from shearling.model.context_length import read_count, stated_length
from shearling.model.end_tokens import read_end_tokens
from shearling.model.head import Head, head_of
from shearling.model.model_artefact import open_model_artefact
from shearling.registry.registry import load_implementation
from shearling.registry.runtimes import DRAFT, RUNTIMES, RuntimeEntry
from shearling.strict_json import Document, read_json
from shearling.target import AUTO, Target


@dataclass(frozen=True)
class ModelFacts:
    """What the configuration of a model says to those who run it.

    Attributes:
        context_tokens: most positions the model knows; None where the configuration names no limit.
        vocabulary: number of token ids; None where it does not say.
        end_ids: tokens that end a text.
        head: whether it continues texts or classifies them.
    """

    context_tokens: int | None = None
    vocabulary: int | None = None
    end_ids: tuple[int, ...] = ()
    head: Head = "language_model"


class Deployment(Document):
    """One model in one format, ready to be loaded.

    Attributes:
        label: as the user named it.
        format: a name of `RUNTIMES`.
        directory: where the files of this format lie.
        manifest_sha256: of the artefact it belongs to; None for a bare directory.
        weights_sha256: digest over name and content of the weight files.
        bytes: everything in `directory`; weights_bytes: the graph and weights alone.
        context_tokens: most positions the model knows; None where the configuration names no limit.
        end_ids: tokens that end a text.
        properties: of the runtime, for this deployment alone.
        file: the one that holds everything; None where the model is a directory.
        environment: virtual environment with the runtime; None is the one that runs.
        engine: what measures it without anything of ours, a name of `serve.visitor`; None is our own runtime.
        draft_sha256: `weights_sha256` of the model that guesses for it; None where there is none, or nothing to load.
    """

    label: str
    format: str
    directory: Path
    manifest_sha256: str | None
    weights_sha256: str
    bytes: int
    weights_bytes: int
    context_tokens: int | None
    vocabulary: int | None
    end_ids: tuple[int, ...]
    properties: dict[str, str] = pydantic.Field(default_factory=dict)
    file: Path | None = None
    environment: Path | None = None
    engine: str | None = None
    draft_sha256: str | None = None

    @property
    def model_file(self) -> Path:
        """What the runtime opens."""
        return self.file or self.directory / RUNTIMES.get(self.format).model_file


def find_deployment(
    target: Target, *, device: str = "CPU", visits: bool = False, classifies: bool = False
) -> Deployment:
    """Find what to run, and verify it.

    Args:
        target: where to look, and in which format; of several, the first that runs on `device`.
        device: see `RunOptions`.
        visits: who asks can measure in any environment, and any file of a known suffix; see `serve.runtimes.visiting`.
        classifies: who asks runs whole forwards, so that it may be a classifier.

    Raises:
        ModelUnsupported: a classifier, for those who continue texts.
        ArtefactMissing: nothing there, nothing runnable, or not in that format.
        ArtefactMismatch: an artefact of a kind that does not run.
        ArtefactCorrupt: a file differs from the manifest.
        UsageError: a property or an environment was given that the runtime does not take.
    """
    path = target.path
    if path.is_file():
        return _from_file(target, visits=visits)
    if not path.is_dir():
        raise ArtefactMissing("no such directory", where=path, remedy="Give an export, or a directory with a model")
    artefact = open_model_artefact(path)
    # The parts of an artefact count only with the manifest that proves them.
    available = _formats(path, with_parts=artefact is not None)
    if not available:
        raise ArtefactMissing(
            f"nothing here runs: {', '.join(f'no {name}' for name in _known_files())}",
            where=path,
            remedy="Make an export with: python -m export",
        )
    entry = _choose(available, target.format, device=device, where=path)
    _check_settings(target, entry, visits=visits)
    directory = available[entry.name]
    # An ONNX directory may lack the configuration; its siblings in the artefact hold the same model.
    siblings = [artefact.path / runtime.part for runtime in RUNTIMES if runtime.part] if artefact else []
    facts = _model_facts((directory, *siblings))
    if not classifies:
        _refuse_classifier(facts, path)
    return _deployment(
        target,
        entry,
        directory=directory,
        manifest_sha256=artefact.sha256 if artefact else None,
        weights=sorted(directory.glob(entry.weights)),
        size_bytes=sum((directory / name).stat().st_size for name in list_files(directory)),
        facts=facts,
    )


def _refuse_classifier(facts: ModelFacts, path: Path) -> None:
    if facts.head == "classifier":
        raise ModelUnsupported(
            "a classifier, which continues no text", where=path, remedy="Time it with: python -m serve forward"
        )


def _from_file(target: Target, *, visits: bool) -> Deployment:
    path = target.path
    for entry in RUNTIMES:
        facts: ModelFacts | None = load_implementation(entry.read_file)(path) if entry.read_file else None
        beside = visits and path.suffix == entry.file_suffix
        if beside:
            facts = _model_facts((path.parent,))
            _refuse_classifier(facts, path)
        if facts is None:
            continue
        if target.format not in (AUTO, entry.name):
            raise ArtefactMissing(
                f"a {entry.name} file; not {target.format}",
                where=path,
                remedy="Leave --format out, and name formats behind the paths: DIR@format=onnx",
            )
        _check_settings(target, entry, visits=visits)
        weights = files_of(path) if beside else [path]
        size_bytes = sum(file.stat().st_size for file in weights)
        deployment = _deployment(
            target,
            entry,
            directory=path.parent,
            manifest_sha256=None,
            weights=weights,
            size_bytes=size_bytes,
            facts=facts,
        )
        return deployment.model_copy(update={"file": path})
    raise ArtefactMissing(
        "no such directory, and no file that a runtime reads", where=path, remedy="Give the directory of the model"
    )


def _deployment(
    target: Target,
    entry: RuntimeEntry,
    *,
    directory: Path,
    manifest_sha256: str | None,
    weights: list[Path],
    size_bytes: int,
    facts: ModelFacts,
) -> Deployment:
    return Deployment(
        label=target.label,
        format=entry.name,
        directory=directory,
        manifest_sha256=manifest_sha256,
        weights_sha256=_digest(weights),
        bytes=size_bytes,
        weights_bytes=sum(file.stat().st_size for file in weights),
        context_tokens=facts.context_tokens,
        vocabulary=facts.vocabulary,
        end_ids=facts.end_ids,
        properties=dict(target.properties),
        environment=target.environment,
        draft_sha256=_draft_digest(target.properties.get(DRAFT), entry),
    )


def _draft_digest(draft: str | None, entry: RuntimeEntry) -> str | None:
    """Of what is there; that it is a model, and one that fits, is seen when it is loaded."""
    for directory in (Path(draft), Path(draft, entry.part or "")) if draft is not None else ():
        weights = sorted(directory.glob(entry.weights))
        if weights:
            return _digest(weights)
    return None


def _check_settings(target: Target, entry: RuntimeEntry, *, visits: bool) -> None:
    strange = [name for name in target.properties if name not in entry.properties]
    if strange and not entry.takes_any_property:
        known = f"it knows {', '.join(entry.properties)}" if entry.properties else "it takes none"
        raise UsageError(
            f"{strange[0]} is no property that {entry.name} knows",
            where=target.label,
            remedy=f"Leave it out: {known}",
        )
    if target.environment is not None and not (visits and entry.takes_environment):
        raise UsageError(
            f"{entry.title} does not run in another environment here",
            where=target.label,
            remedy="Leave environment= out" + ("" if visits else "; bench, check and bisect take it"),
        )


def _known_files() -> Iterator[str]:
    for entry in RUNTIMES:
        if entry.read_file is None:
            covered = fnmatch.fnmatch(entry.model_file, entry.weights)
            yield entry.model_file if covered else f"{entry.model_file} with {entry.weights}"


def _formats(path: Path, *, with_parts: bool) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for entry in RUNTIMES:
        if entry.read_file is not None:
            continue
        for directory in (path, path / (entry.part or "")) if with_parts else (path,):
            # Every format may carry a config.json; only weights beside it make a Hugging Face model.
            if (
                entry.name not in found
                and (directory / entry.model_file).is_file()
                and any(directory.glob(entry.weights))
            ):
                found[entry.name] = directory
    return found


def _choose(available: Mapping[str, Path], choice: str, *, device: str, where: Path) -> RuntimeEntry:
    if choice == AUTO:
        # Where none has the device, the check of the device says so of the first.
        entries = [RUNTIMES.get(name) for name in available]
        return next((entry for entry in entries if entry.has_device(device)), entries[0])
    if choice not in available:
        raise ArtefactMissing(
            f"holds {', '.join(available)}; not {choice}",
            where=where,
            remedy="Leave --format out or choose it from these, or export again with --formats",
        )
    return RUNTIMES.get(choice)


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0{sha256_file(file)}\n".encode())
    return digest.hexdigest()


def _model_facts(places: tuple[Path, ...]) -> ModelFacts:
    configs = [_read_if_there(place / "config.json") for place in places]
    config = next((found for found in configs if found), {})
    return ModelFacts(
        context_tokens=stated_length(config),
        vocabulary=read_count(config, "vocab_size"),
        end_ids=read_end_tokens(places),
        head=head_of(config),
    )


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
