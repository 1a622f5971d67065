"""Hugging Face checkpoints, loaded safely: local directories, safetensors only, no remote code, every weight finite."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shearling.artefact import sha256_file
from shearling.console import log
from shearling.errors import ArtefactCorrupt, ArtefactMissing, ModelUnsupported
from shearling.model.checkpoint_safety import CONFIG, check_configuration, weight_files
from shearling.model.configuration import UNFIT, open_configuration
from shearling.model.end_tokens import end_token_ids
from shearling.model.head import auto_class
from shearling.model.skeleton import check_finite_tensor, open_skeleton
from shearling.model.weight_shards import MAX_SHARD_BYTES, Dtype, StoredTensor, writing_weights

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def load_model(directory: Path, *, dtype: Dtype | None = "float32") -> PreTrainedModel:
    """Load a decoder, or a classifier, in eval mode, after `check_checkpoint` has passed its directory.

    The weights are there once, and beside them a tensor at a time; what transformers has to rename or to convert comes
    through its own loader, which maps all files meanwhile.

    Args:
        directory: a local Hugging Face model directory.
        dtype: of every floating-point weight; None is that of the files. Weights that have it there are views of the
            files, and take memory as far as they are read.

    Raises:
        ArtefactError: whatever `check_checkpoint` refuses.
        ArtefactCorrupt: tensors are missing, superfluous, or of other shapes than the configuration says.
        NonFiniteWeights: names the first tensor with NaN or infinity.
    """
    import torch
    import transformers
    from safetensors import SafetensorError

    from shearling.model.plain_modules import make_plain

    wanted = None if dtype is None else getattr(torch, dtype)
    skeleton = open_skeleton(directory)
    if skeleton is not None and (dtype in ("float32", None) or not skeleton.keeps_float32):
        if wanted is None:
            skeleton.map()
        else:
            skeleton.fill(lambda _name: True, wanted)
        skeleton.model.config.dtype = wanted or skeleton.model.dtype
        return skeleton.model.requires_grad_(True)
    transformers.utils.logging.disable_progress_bar()
    try:
        config = open_configuration(directory)
        model, info = _loader(config, directory).from_pretrained(
            str(directory),
            config=config,
            dtype=wanted or "auto",
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (SafetensorError, *UNFIT) as error:
        raise ArtefactCorrupt(
            f"the checkpoint does not load: {type(error).__name__}: {error}", where=directory
        ) from error
    for complaint in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(complaint):
            names = ", ".join(sorted(str(name) for name in info[complaint])[:3])
            raise ArtefactCorrupt(
                f"{complaint.replace('_', ' ')}: {names}",
                where=directory,
                remedy="Weights and config.json do not belong together",
            )
    check_finite(model)
    make_plain(model)
    return model.eval()


def _loader(config: PreTrainedConfig, directory: Path) -> Any:
    """What loads the model: transformers' own class, or one with layers of different widths."""
    from shearling.model.narrow_layers import narrow_class, read_layer_widths

    widths = read_layer_widths(config, where=directory / CONFIG)
    auto = auto_class(config)
    return auto if widths is None else narrow_class(auto._model_mapping[type(config)], widths)


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model directory.

    Raises:
        ArtefactMissing: there is none.
        CheckpointUnsafe: its configuration names code, or a file is a link.
        ModelUnsupported: the installed libraries cannot read it.
    """
    from transformers import AutoTokenizer

    check_configuration(directory)
    if not (directory / "tokenizer_config.json").is_file():
        raise ArtefactMissing("no tokenizer here: tokenizer_config.json is missing", where=directory)
    try:
        return AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    # The tokenizers library reports a malformed tokenizer.json as a bare Exception.
    except Exception as error:
        raise ModelUnsupported(
            f"the tokenizer does not load: {type(error).__name__}: {error}", where=directory
        ) from error


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Save model and tokenizer as a Hugging Face directory of safetensors files."""
    import transformers

    from shearling.model.experts import has_separate_experts

    if has_separate_experts(model):
        # Its modules have the names of the checkpoint already, which `save_pretrained` would look for among fused ones.
        _save_as_named(model, directory)
        dtype: Any = str(model.dtype).removeprefix("torch.")
        save_description(model, tokenizer, directory, dtype)
        return
    transformers.utils.logging.disable_progress_bar()
    _drop_ignored_settings(model)
    _name_end_of_tokenizer(model, tokenizer)
    model.save_pretrained(str(directory), max_shard_size=MAX_SHARD_BYTES)
    tokenizer.save_pretrained(str(directory))


def _save_as_named(model: PreTrainedModel, directory: Path) -> None:
    """Write every tensor under its name in the model; a tied one once."""
    tensors = dict(_model_tensors(model))
    with writing_weights(directory, {name: StoredTensor.of(tensor) for name, tensor in tensors.items()}) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)


def save_description(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path, dtype: Dtype) -> None:
    """Save what belongs beside the weights, as `save_model` does: configuration and tokenizer.

    Args:
        model: whose weights may be on the meta device; its configuration is changed to name the type.
        tokenizer: of the model.
        directory: exists.
        dtype: of the weights beside it.
    """
    model.config.dtype = dtype
    model.config.architectures = [type(model).__name__]
    _name_end_of_tokenizer(model, tokenizer)
    save_configurations(model, directory)
    tokenizer.save_pretrained(str(directory))


def save_configurations(model: PreTrainedModel, directory: Path) -> None:
    """Write config.json, and generation_config.json of a model that generates."""
    _drop_ignored_settings(model)
    model.config.save_pretrained(str(directory))
    if model.can_generate():
        model.generation_config.save_pretrained(str(directory))


def _name_end_of_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Training teaches the tokenizer's end, and many runtimes end a text by generation_config.json alone: it gets every
    end that the tokenizer or config.json names.
    """
    if not model.can_generate():
        return
    named = end_token_ids(model.generation_config.to_dict())
    ends = {*named, *end_token_ids(model.config.to_dict())}
    if tokenizer.eos_token_id is not None:
        ends.add(int(tokenizer.eos_token_id))
    if ends != set(named):
        model.generation_config.eos_token_id = sorted(ends) if len(ends) > 1 else ends.pop()


def _drop_ignored_settings(model: PreTrainedModel) -> None:
    """Settings of generation that transformers reads, ignores, and refuses to write: a temperature without sampling."""
    if not model.can_generate():
        return
    try:
        model.generation_config.validate(strict=True)
    except ValueError as error:
        ignored = re.findall(r"^- `(\w+)`", str(error), re.MULTILINE)
        for name in ignored:
            setattr(model.generation_config, name, None)
        log.print(f"settings of generation that have no effect are left out: {', '.join(ignored)}")


def check_finite(model: nn.Module) -> None:
    """Check every parameter.

    Raises:
        NonFiniteWeights: names the first tensor with NaN or infinity, and how many entries.
    """
    for name, tensor in model.named_parameters():
        check_finite_tensor(tensor, where=name)


def hash_weights(source: nn.Module | Path) -> str:
    """SHA-256 over name, dtype, shape and raw bytes of every tensor, sorted by name, in hexadecimal digits.

    A tied tensor counts once, under the name it is saved by.

    Args:
        source: a model, or a directory that `save_model` wrote, which has the same digest.
    """
    tensors = _file_tensors(source) if isinstance(source, Path) else _model_tensors(source)
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name}\0{str(tensor.dtype).removeprefix('torch.')}\0{list(tensor.shape)}\0".encode())
        digest.update(_raw_bytes(tensor))
    return digest.hexdigest()


def hash_config(directory: Path) -> str:
    """Hex digest of the bytes of `config.json`."""
    return sha256_file(directory / CONFIG)


def _model_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    state = model.state_dict(keep_vars=True)
    # state_dict repeats a tied parameter under each of its names; the first, the embedding, is the one that is saved.
    first_names: dict[int, str] = {}
    for name, tensor in state.items():
        first_names.setdefault(id(tensor), name)
    yield from ((name, state[name].detach()) for name in sorted(first_names.values()))


def _file_tensors(directory: Path) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    file_of: dict[str, Path] = {}
    for path in weight_files(directory):
        with safe_open(path, framework="pt") as file:
            file_of |= dict.fromkeys(file.keys(), path)
    for name in sorted(file_of):
        with safe_open(file_of[name], framework="pt") as file:
            yield name, file.get_tensor(name)


def _raw_bytes(tensor: Tensor) -> Any:
    import torch

    # A zero-copy buffer: a 540 MB embedding is hashed where it lies.
    return tensor.contiguous().cpu().flatten().view(torch.uint8).numpy().data
