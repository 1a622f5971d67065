"""The `base` artefact: a pretrained transformer, imported once from a GGUF file or a Hugging Face directory, cleaned
and verified.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shearling.artefact import Artefact, open_artefact, sha256_file, write_artefact
from shearling.errors import ArtefactMissing, CheckpointUnsafe
from shearling.hard_link import link_or_copy
from shearling.model.checkpoint import check_finite, load_model, load_tokenizer, save_description, save_model
from shearling.model.checkpoint_safety import (
    CODE_KEYS,
    CONFIG,
    JSON_FILES,
    check_architecture,
    check_checkpoint,
    refuse_links,
    weight_files,
)
from shearling.model.gguf_header import is_gguf, read_header
from shearling.model.gguf_tokenizer import rebuild_tokenizer
from shearling.model.head import Head
from shearling.model.layers import find_layers
from shearling.model.skeleton import Skeleton, check_finite_tensor, open_skeleton
from shearling.model.weight_shards import Dtype, StoredWeights, main_dtype, writing_weights
from shearling.strict_json import read_json, write_json
from train.base.classifier_head import load_with_new_head, share_padding
from train.base.gguf import load_gguf_model
from train.base.gpt2 import imported_directory, imported_model
from train.base.license import license_of_directory, license_of_gguf

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

KEPT_SUFFIXES = frozenset({".json", ".jinja", ".txt", ".model", ".safetensors"})
"""What an import reads of a Hugging Face directory: configuration, tokenizer, weights; never code."""


def import_base(
    source: Path,
    destination: Path,
    *,
    model_id: str,
    license_id: str | None = None,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    dtype: Dtype | None = None,
    force: bool = False,
) -> Artefact:
    """Make a `base` artefact.

    The weights of a directory go from file to file, a tensor at a time, where their names are those of the model;
    otherwise, and from a GGUF file, the model is loaded as a whole.

    Args:
        source: a GGUF file, or a local Hugging Face directory.
        destination: where the artefact will stand.
        model_id: the model's public name, for model cards.
        license_id: of the model, for model cards; None takes what the source says.
        classes: give the model a new classification head with these; None imports a language model.
        seed: draws that head.
        dtype: what the weights are stored in; None keeps what they are stored in at the source, which is float32 for a
            GGUF file and for a model that gets a new head.
        force: replace an artefact that is already there.

    Raises:
        ArtefactMissing: no such source.
        ArtefactCorrupt, CheckpointUnsafe, ModelUnsupported, NonFiniteWeights: the source cannot be used.
        OutputExists, OutputLocked, ResourceExhausted: the destination cannot be written.
    """
    with write_artefact(destination, kind="base", force=force) as draft:
        if is_gguf(source):
            model, tokenizer, origin, stated = _load_gguf(source)
            stored = _save_whole(model, tokenizer, draft.directory, dtype or "float32")
        else:
            head: Head = "language_model" if classes is None else "classifier"
            with _cleaned(source, scratch=draft.directory, head=head) as (directory, removed):
                tokenizer = load_tokenizer(directory)
                skeleton = open_skeleton(directory) if classes is None else None
                if skeleton is not None:
                    model, stored = skeleton.model, _copy(skeleton, tokenizer, draft.directory, dtype)
                else:
                    kept = dtype or ("float32" if classes is not None else _main_dtype(directory))
                    if classes is None:
                        model = load_model(directory, dtype=kept)
                    else:
                        model = load_with_new_head(directory, classes=classes, seed=seed)
                        share_padding(model, tokenizer)
                    stored = _save_whole(model, tokenizer, draft.directory, kept)
            origin = _origin(source, removed)
            stated = license_of_directory(source)
        draft.details |= {
            "model_id": model_id,
            "model_type": model.config.model_type,
            "torch_dtype": stored,
            "num_layers": len(find_layers(model).layers),
            "tie_word_embeddings": _is_tied(model),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "source": origin,
            "license": stated if license_id is None else {"license": license_id},
        }
        if classes is not None:
            draft.details |= {"classes": list(classes), "head_seed": seed}
    return open_artefact(destination, kind="base")


def _load_gguf(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any], dict[str, str]]:
    """The model, its tokenizer, which file it is, and what that says of its licence."""
    header = read_header(path)
    # The tokenizer first: it is refused in a second, the weights take half a minute.
    tokenizer = rebuild_tokenizer(header)
    model = imported_model(load_gguf_model(header))
    # The name of a file; the manifest has the model's own.
    model.config.__dict__.pop("_model_name_or_path", None)
    origin = {"format": "gguf", "file": path.name, "sha256": sha256_file(path)}
    return model, tokenizer, origin, license_of_gguf(header)


def _is_tied(model: PreTrainedModel) -> bool:
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def _copy(skeleton: Skeleton, tokenizer: PreTrainedTokenizerBase, directory: Path, dtype: Dtype | None) -> Dtype:
    """Write the weights of a checkpoint tensor by tensor; gives the type of most."""
    # A structure that cannot be pruned is refused before gigabytes are written.
    find_layers(skeleton.model)
    tensors = skeleton.described(dtype)
    with writing_weights(directory, tensors) as writer:
        for name, tensor in tensors.items():
            value = skeleton.weights.read(name)
            check_finite_tensor(value, where=name)
            writer.write(name, value.to(tensor.torch_dtype))
    stored = dtype or skeleton.dtype
    save_description(skeleton.model, tokenizer, directory, stored)
    return stored


def _save_whole(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path, dtype: Dtype) -> Dtype:
    import torch

    check_finite(model)
    # As in `_copy`.
    find_layers(model)
    save_model(model.to(getattr(torch, dtype)), tokenizer, directory)
    return dtype


def _main_dtype(directory: Path) -> Dtype:
    """Of a checkpoint that is loaded as a whole."""
    check_checkpoint(directory)
    return main_dtype(StoredWeights(directory))


def _origin(source: Path, removed: Sequence[str]) -> dict[str, Any]:
    return {"format": "huggingface", "file": source.name, "sha256": _digest(source), "removed_keys": list(removed)}


@contextmanager
def _cleaned(source: Path, *, scratch: Path, head: Head) -> Iterator[tuple[Path, list[str]]]:
    """A view of `source`, below `scratch`, without code and without keys that name code; the weights are hard links
    where the disk allows it, but for those of an architecture that is imported as another one.
    """
    if not source.is_dir():
        raise ArtefactMissing(
            "no such model", where=source, remedy="Give a GGUF file or a local Hugging Face directory"
        )
    if not (source / CONFIG).is_file():
        raise ArtefactMissing(
            f"not a model: {CONFIG} is missing",
            where=source,
            remedy="Give a GGUF file or a local Hugging Face directory",
        )
    config = read_json(source / CONFIG)
    check_architecture(config, head=head, where=source / CONFIG)
    _refuse_foreign_class(config, where=source / CONFIG)
    # Pickles alone are refused here; beside safetensors they are left behind.
    weight_files(source)
    removed: list[str] = []
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".import-") as temporary:
        refuse_links(source)
        for path in sorted(source.iterdir()):
            if path.name in JSON_FILES:
                write_json(Path(temporary) / path.name, _without_code(read_json(path), removed, prefix=f"{path.name}:"))
            elif path.is_file() and (path.suffix in KEPT_SUFFIXES or path.name == "adapter_config.json"):
                link_or_copy(path, Path(temporary) / path.name)
        yield imported_directory(Path(temporary), Path(temporary) / "imported"), removed


def _refuse_foreign_class(config: dict[str, Any], *, where: Path) -> None:
    """With `auto_map`, the architecture must be one of transformers' own, or the weights belong to code that we do
    not run.
    """
    import transformers

    if "auto_map" not in config:
        return
    architectures = config.get("architectures") or []
    foreign = [name for name in architectures if not hasattr(transformers, str(name))]
    if foreign or not architectures:
        raise CheckpointUnsafe(
            f"the model needs its own code ({', '.join(map(str, foreign)) or 'no architecture named'}, from auto_map)",
            where=where,
            remedy="Only architectures that transformers has are supported",
        )


def _without_code(value: Any, removed: list[str], *, prefix: str) -> Any:
    if isinstance(value, dict):
        removed += [f"{prefix}{key}" for key in value if key in CODE_KEYS]
        return {
            key: _without_code(inner, removed, prefix=f"{prefix}{key}.")
            for key, inner in value.items()
            if key not in CODE_KEYS
        }
    if isinstance(value, list):
        return [_without_code(inner, removed, prefix=prefix) for inner in value]
    return value


def source_digest(source: Path) -> str:
    """Hex digest of everything that an import reads of a GGUF file or a Hugging Face directory."""
    return _digest(source) if source.is_dir() else sha256_file(source)


def _digest(directory: Path) -> str:
    files = {
        path.name: sha256_file(path)
        for path in sorted(directory.iterdir())
        if path.is_file() and path.suffix in KEPT_SUFFIXES
    }
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
