"""What a Hugging Face directory must be before anything in it is loaded.

Loading a checkpoint can run code: pickles do by design, `auto_map` names a Python file, `_attn_implementation_internal`
names a kernel repository (honoured by transformers below 5.3), an `adapter_config.json` redirects the loader to another
model. And it can read elsewhere: links, or shard names with `..`. All of that is refused from the names and the JSON
alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shearling.errors import ArtefactCorrupt, ArtefactMissing, CheckpointUnsafe, DocumentInvalid, ModelUnsupported
from shearling.model.head import Head, head_of
from shearling.model.quantized import check_plain, check_plain_tensors
from shearling.strict_json import read_json

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
JSON_FILES = (CONFIG, "generation_config.json", "tokenizer_config.json")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack")
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""How the text begins that Git LFS leaves in the place of a file that it has not fetched."""

CODE_KEYS = frozenset(
    {
        "auto_map",
        "custom_pipelines",
        "custom_generate",
        "attn_implementation",
        "_attn_implementation",
        "_attn_implementation_internal",
        "experts_implementation",
        "_experts_implementation",
        "_experts_implementation_internal",
        "trust_remote_code",
    }
)
"""Keys by which a configuration names code; none of them describes weights."""


def check_checkpoint(directory: Path, *, head: Head | None = None) -> dict[str, Any]:
    """Refuse a directory that is incomplete, or whose loading could run code or read outside it.

    Args:
        directory: a local Hugging Face model directory.
        head: see `check_architecture`.

    Returns:
        The parsed `config.json`.

    Raises:
        ArtefactMissing: no directory, no config, no weights, or a shard is absent.
        ArtefactCorrupt: a weight file is truncated, or the index and the shards disagree.
        CheckpointUnsafe: pickles, links, paths that lead outside, or keys that name code.
        ModelUnsupported: see `check_architecture`.
        DocumentInvalid: malformed JSON.
    """
    check_configuration(directory)
    if (directory / "adapter_config.json").exists():
        raise CheckpointUnsafe(
            "it would load the base model that its adapter names, from anywhere",
            where=directory / "adapter_config.json",
        )
    config = read_json(directory / CONFIG)
    check_architecture(config, head=head, where=directory / CONFIG)
    check_shards(directory)
    return config


def check_shards(directory: Path) -> None:
    """Refuse weights that are not all there, from the names and the headers of their files alone.

    Args:
        directory: a local Hugging Face model directory.

    Raises:
        ArtefactMissing: no weights, or a shard is absent.
        ArtefactCorrupt: a weight file is truncated or none, or the index and the shards disagree.
        CheckpointUnsafe: pickles, or paths that lead outside.
        ModelUnsupported: the weights are quantized.
        DocumentInvalid: a malformed index.
    """
    for shard, expected in _expected_shards(directory).items():
        _check_shard(directory / shard, expected)


def check_configuration(directory: Path) -> None:
    """Refuse links and keys that name code, in the model's and the tokenizer's configuration alike.

    Raises:
        ArtefactMissing: no such directory.
        CheckpointUnsafe: see the module.
        DocumentInvalid: malformed JSON.
    """
    if not directory.is_dir():
        raise ArtefactMissing(
            "no such directory", where=directory, remedy="Give a local model directory; nothing is fetched by name"
        )
    refuse_links(directory)
    for name in JSON_FILES:
        if (directory / name).is_file():
            refuse_code_keys(read_json(directory / name), where=directory / name)


def refuse_links(directory: Path) -> None:
    """Refuse a directory that holds links, as the cache of the hub does.

    Raises:
        CheckpointUnsafe: names the first.
    """
    for path in sorted(directory.iterdir()):
        if path.is_symlink():
            raise CheckpointUnsafe(
                "a link, which can lead outside the directory",
                where=path,
                remedy=f"Copy the files themselves: cp -rL {directory} ELSEWHERE",
            )


def refuse_code_keys(config: Mapping[str, Any], *, where: Path) -> None:
    """Refuse a configuration with any of `CODE_KEYS`, at any depth.

    Raises:
        CheckpointUnsafe: names the key.
    """
    for key in _keys(config):
        if key.rsplit(".", 1)[-1] in CODE_KEYS:
            raise CheckpointUnsafe(
                f"the key '{key}' names code",
                where=where,
                remedy="Remove the key if the architecture is a native one; remote code is never run",
            )


def check_architecture(config: Mapping[str, Any], *, head: Head | None = None, where: Path) -> None:
    """Refuse what is quantized, or is no architecture that the installed transformers has with this head.

    Args:
        config: the content of a config.json.
        head: what the model will be for, where it gets a new head; None is what it is for.
        where: the file.

    Raises:
        ModelUnsupported: says which.
    """
    import transformers
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    )

    check_plain(config, where=where)
    model_type = config.get("model_type")
    classifies = (head or head_of(config)) == "classifier"
    known = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES if classifies else MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if not isinstance(model_type, str) or model_type not in known:
        kind = "sequence classifier" if classifies else "causal language model"
        raise ModelUnsupported(
            f"model_type {model_type!r} is no {kind} of transformers {transformers.__version__}", where=where
        )
    if config.get("is_encoder_decoder"):
        raise ModelUnsupported("an encoder-decoder; decoders are supported, and encoders that classify", where=where)


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint, in the order of their names."""
    return [directory / name for name in sorted(_expected_shards(directory))]


def _expected_shards(directory: Path) -> dict[str, set[str] | None]:
    """Shard name -> the tensors it must hold; None where no index says so."""
    if (directory / INDEX).is_file():
        return _read_index(directory / INDEX)
    if (directory / WEIGHTS).is_file():
        return {WEIGHTS: None}
    pickles = sorted(path.name for path in directory.iterdir() if path.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise CheckpointUnsafe(
            f"the weights are pickles ({', '.join(pickles[:3])}), which run code when loaded",
            where=directory,
            remedy="Convert them to safetensors where you trust them",
        )
    raise ArtefactMissing(f"no weights: neither {WEIGHTS} nor {INDEX}", where=directory)


def _read_index(path: Path) -> dict[str, set[str] | None]:
    weight_map = read_json(path).get("weight_map")
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(name, str) for name in weight_map.values())
    ):
        raise DocumentInvalid("weight_map must be a nonempty object of file names", where=path)
    shards: dict[str, set[str] | None] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard or shard in ("", ".", "..") or "\\" in shard:
            raise CheckpointUnsafe(f"the shard name {shard!r} leads outside the directory", where=path)
        if not shard.endswith(".safetensors"):
            raise CheckpointUnsafe(f"the shard {shard!r} is not a safetensors file", where=path)
        shards[shard] = {tensor for tensor, file in weight_map.items() if file == shard}
    return shards


def _check_shard(path: Path, expected: set[str] | None) -> None:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ArtefactMissing(
            "a shard that the index names is not there", where=path, remedy="Copy the checkpoint again, completely"
        )
    try:
        # Opening compares the header with the length of the file, so a truncated one is found without reading it.
        with safe_open(path, framework="pt") as file:
            found = set(file.keys())
    except SafetensorError as error:
        raise _unreadable(path, error) from None
    check_plain_tensors(sorted(found), where=path)
    if expected is not None and found != expected:
        raise ArtefactCorrupt(f"index and shard disagree about {', '.join(sorted(found ^ expected)[:3])}", where=path)


def _unreadable(path: Path, error: Exception) -> ArtefactCorrupt:
    with path.open("rb") as stream:
        is_pointer = stream.read(len(LFS_POINTER)) == LFS_POINTER
    if is_pointer:
        return ArtefactCorrupt(
            "a pointer of Git LFS, not the weights that it stands for", where=path, remedy="Fetch them: git lfs pull"
        )
    return ArtefactCorrupt(f"not a readable safetensors file: {error}", where=path, remedy="Copy the checkpoint again")


def _keys(value: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield f"{prefix}{key}"
            yield from _keys(inner, f"{prefix}{key}.")
    elif isinstance(value, list):
        for inner in value:
            yield from _keys(inner, prefix)
