"""Finding what can be run: an `export`, `base` or `sparse` artefact of ours, a bare model directory, or a GGUF file.

An artefact is verified byte for byte first, also when the directory given is one of its parts
(`RUN/export/openvino`). Every
weight file is read once for its digest, so the later load always finds warm file caches.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pydantic

from shearling.artefact import MANIFEST, Artefact, Manifest, list_files, open_artefact, sha256_file
from shearling.errors import ArtefactMismatch, ArtefactMissing, UsageError
from shearling.model.gguf_header import is_gguf, read_header
from shearling.strict_json import Document, read_document, read_json

Format = Literal["openvino", "onnx", "torch", "gguf", "deepsparse"]
FormatChoice = Literal["auto", "openvino", "onnx", "torch"]

MODEL_FILE: Mapping[Format, str] = {
    "openvino": "openvino_model.xml",
    "onnx": "model.onnx",
    "torch": "config.json",
    "deepsparse": "static_decoder.onnx",
}
PART: Mapping[Format, str] = {"openvino": "openvino", "onnx": "onnx", "torch": "model"}
WEIGHTS: Mapping[Format, str] = {
    "openvino": "openvino_model.*",
    "onnx": "model.onnx*",
    "torch": "*.safetensors",
    "deepsparse": "static_decoder.onnx",
}
RUNNABLE_KINDS = ("export", "base", "sparse")
VISITORS: tuple[Format, ...] = ("gguf", "deepsparse")
"""Formats of other runtimes, to compare with: these may be installed in an environment of their own."""
PROPERTIES: Mapping[Format, tuple[str, ...]] = {"torch": ("SEMI_STRUCTURED",)}
"""Of the runtimes that do not take any."""

PROPERTY = re.compile(r"[A-Z][A-Z0-9_]*")
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")


class Deployment(Document):
    """One model in one format, ready to be loaded.

    Attributes:
        label: the path as the user gave it.
        directory: where the files of this format lie.
        manifest_sha256: of the artefact it belongs to; None for a bare directory.
        weights_sha256: digest over name and content of the weight files.
        bytes: everything in `directory`; weights_bytes: the graph and weights alone.
        context_tokens: most positions the model knows; None where the configuration names no limit.
        end_ids: tokens that end a text.
        properties: of the runtime, for this deployment alone.
        file: the one that holds everything, of a GGUF; None where it is a directory.
        environment: virtual environment with the runtime; None is the one that runs.
    """

    label: str
    format: Format
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


def find_configured(argument: Path, *, choice: FormatChoice = "auto", device: str = "CPU") -> Deployment:
    """Find what a command-line argument names: `DIR`, `DIR@format=onnx`, `DIR@PROPERTY=VALUE,PROPERTY=VALUE`,
    `FILE.gguf@environment=DIR` or `DIR@environment=DIR`.

    Args:
        argument: a directory or a GGUF file, and behind an `@` what holds for it alone: its format, properties of
            OpenVINO by their
            names, and of a GGUF file or a static decoder the virtual environment that llama.cpp or DeepSparse is
            installed in.
        choice: see `find_deployment`; what the argument says goes first.
        device: see `find_deployment`.

    Raises:
        UsageError: the part behind the `@` is malformed, or gives OpenVINO's properties to another runtime.
        ArtefactError: see `find_deployment`.
    """
    directory, _, settings = str(argument).rpartition("@")
    if argument.exists() or "=" not in settings:
        return find_deployment(argument, choice=choice, device=device)
    pairs = [part.partition("=") for part in settings.split(",")]
    properties = {name: value for name, _, value in pairs if name not in ("format", "environment")}
    environments = [value for name, _, value in pairs if name == "environment"]
    malformed = [name for name, value in properties.items() if not PROPERTY.fullmatch(name) or not value]
    formats = [value for name, _, value in pairs if name == "format"]
    if malformed or any(value not in PART for value in formats) or len(formats) > 1 or len(environments) > 1:
        remedy = (
            "Write DIR@format=openvino|onnx|torch, DIR@NAME=VALUE with the name of an OpenVINO "
            "property, several separated by commas, "
            "FILE.gguf@environment=DIR, or DIR@environment=DIR of a static decoder"
        )
        raise UsageError(f"cannot read the settings {settings!r}", where=argument, remedy=remedy)
    found = find_deployment(Path(directory), choice=formats[0] if formats else choice, device=device)  # type: ignore[arg-type] # checked above
    strange = [
        name for name in properties if found.format != "openvino" and name not in PROPERTIES.get(found.format, ())
    ]
    if strange:
        raise UsageError(
            f"{strange[0]} is no property that {found.format} knows",
            where=argument,
            remedy="Only OpenVINO takes properties freely",
        )
    if environments and found.format not in VISITORS:
        raise UsageError(
            "only llama.cpp and DeepSparse run in an environment of their own",
            where=argument,
            remedy="Leave environment= out",
        )
    environment = Path(environments[0]) if environments else None
    return found.model_copy(update={"label": str(argument), "properties": properties, "environment": environment})


def find_deployment(path: Path, *, choice: FormatChoice = "auto", device: str = "CPU") -> Deployment:
    """Find what to run in `path`, and verify it.

    Args:
        path: an artefact, a part of one, a bare model directory, or a GGUF file.
        choice: the format; `auto` takes the first there is of those that run on `device`.
        device: see `RunOptions`.

    Raises:
        ArtefactMissing: no directory, nothing runnable in it, or not in that format.
        ArtefactMismatch: an artefact of a kind that does not run.
        ArtefactCorrupt: a file differs from the manifest.
    """
    if is_gguf(path):
        return _gguf_deployment(path, choice)
    if not path.is_dir():
        raise ArtefactMissing("no such directory", where=path, remedy="Give an export, or a directory with a model")
    artefact = _verified_artefact(path)
    # The parts of an artefact count only with the manifest that proves them.
    available = _formats(path, with_parts=artefact is not None)
    if not available:
        raise ArtefactMissing(
            "nothing here runs: no openvino_model.xml, no model.onnx, no config.json with "
            "safetensors, no static_decoder.onnx",
            where=path,
            remedy="Make an export with: python -m export",
        )
    model_format = _choose(available, choice, device=device, where=path)
    directory = available[model_format]
    weights = sorted(directory.glob(WEIGHTS[model_format]))
    # An ONNX directory may lack the configuration; its siblings in the artefact hold the same model.
    places = (directory, *(artefact.path / part for part in PART.values())) if artefact else (directory,)
    configs = [_read_if_there(place / "config.json") for place in places]
    config = next((found for found in configs if found), {})
    return Deployment(
        label=str(path),
        format=model_format,
        directory=directory,
        manifest_sha256=artefact.sha256 if artefact else None,
        weights_sha256=_digest(weights),
        bytes=sum((directory / name).stat().st_size for name in list_files(directory)),
        weights_bytes=sum(file.stat().st_size for file in weights),
        context_tokens=next((value for key in CONTEXT_KEYS if (value := _integer(config, key)) is not None), None),
        vocabulary=_integer(config, "vocab_size"),
        end_ids=_end_ids(places, config),
    )


def _gguf_deployment(path: Path, choice: FormatChoice) -> Deployment:
    if choice != "auto":
        raise ArtefactMissing(
            f"a GGUF file; not {choice}",
            where=path,
            remedy="Leave --format out, and name formats behind the paths: DIR@format=onnx",
        )
    fields = read_header(path).fields
    architecture = fields.get("general.architecture")
    vocabulary = fields.get(f"{architecture}.vocab_size") or len(fields.get("tokenizer.ggml.tokens", ()))
    end = fields.get("tokenizer.ggml.eos_token_id")
    size = path.stat().st_size
    return Deployment(
        label=str(path),
        format="gguf",
        directory=path.parent,
        manifest_sha256=None,
        weights_sha256=_digest([path]),
        bytes=size,
        weights_bytes=size,
        context_tokens=fields.get(f"{architecture}.context_length"),
        vocabulary=vocabulary or None,
        end_ids=() if end is None else (int(end),),
        file=path,
    )


def _verified_artefact(path: Path) -> Artefact | None:
    for root in (path, path.resolve().parent):
        if not (root / MANIFEST).is_file():
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


def _formats(path: Path, *, with_parts: bool) -> dict[Format, Path]:
    found: dict[Format, Path] = {}
    for model_format, name in MODEL_FILE.items():
        for directory in (path, path / PART.get(model_format, "")) if with_parts else (path,):
            # Every format may carry a config.json; only weights beside it make a Hugging Face model.
            if (
                model_format not in found
                and (directory / name).is_file()
                and any(directory.glob(WEIGHTS[model_format]))
            ):
                found[model_format] = directory
    return found


def _choose(available: Mapping[Format, Path], choice: FormatChoice, *, device: str, where: Path) -> Format:
    if choice == "auto":
        preferred = [
            name
            for name in available
            if (name != "openvino" if device.upper().startswith(("CUDA", "TENSORRT")) else True)
        ]
        return next(iter(preferred or available))
    if choice not in available:
        raise ArtefactMissing(
            f"holds {', '.join(available)}; not {choice}",
            where=where,
            remedy="Leave --format out or choose it from these, or export again with --formats",
        )
    return choice


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0{sha256_file(file)}\n".encode())
    return digest.hexdigest()


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _integer(config: Mapping[str, Any], key: str) -> int | None:
    nested = config.get("text_config")
    for scope in (config, nested if isinstance(nested, dict) else {}):
        value = scope.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _end_ids(places: tuple[Path, ...], config: Mapping[str, Any]) -> tuple[int, ...]:
    generation = next((found for place in places if (found := _read_if_there(place / "generation_config.json"))), {})
    ids: set[int] = set()
    for source in (generation, config):
        value = source.get("eos_token_id")
        ids |= {item for item in (value if isinstance(value, list) else [value]) if isinstance(item, int)}
    return tuple(sorted(ids))
