"""GGUF files of tiny models of any family, named and laid out as llama.cpp's converter does it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

NORMS_PLUS_ONE = ("gemma2", "gemma3", "nemotron")
"""Architectures whose norms the converter stores with the one that the model adds."""
CONTROL, USER_DEFINED, NORMAL, UNUSED = 3, 4, 1, 5


def write_any_gguf(
    path: Path,
    architecture: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    fields: Mapping[str, int | float | str | bool] | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Write a model.

    Args:
        path: of the file.
        architecture: the name that the file has for it.
        model: its experts, where it has some, as transformers fuses them.
        tokenizer: byte-level BPE, which splits digits.
        fields: more metadata, or other values of it; keys as in the file.
        tensors: more of them.

    Returns:
        The path.
    """
    writer = gguf.GGUFWriter(path, architecture)
    config = model.config
    facts: dict[str, int | float | str | bool] = {
        f"{architecture}.context_length": config.max_position_embeddings,
        f"{architecture}.embedding_length": config.hidden_size,
        f"{architecture}.block_count": config.num_hidden_layers,
        f"{architecture}.feed_forward_length": config.intermediate_size,
        f"{architecture}.attention.head_count": config.num_attention_heads,
        f"{architecture}.attention.head_count_kv": config.num_key_value_heads,
        f"{architecture}.vocab_size": config.vocab_size,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.eos_token_id": tokenizer.eos_token_id,
        "tokenizer.ggml.padding_token_id": tokenizer.pad_token_id,
        **(fields or {}),
    }
    for key, value in facts.items():
        _add(writer, key, value)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    names = {index: token for token, index in tokenizer.get_vocab().items()}
    special = {token["content"] for token in state["added_tokens"]}
    writer.add_token_list([names.get(index, f"[PAD{index}]") for index in range(config.vocab_size)])
    writer.add_token_types(
        [
            UNUSED if index not in names else CONTROL if names[index] in special else NORMAL
            for index in range(config.vocab_size)
        ]
    )
    writer.add_token_merges([" ".join(merge) for merge in state["model"]["merges"]])
    for name, tensor in {**_tensors(architecture, model), **(tensors or {})}.items():
        writer.add_tensor(name, np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: int | float | str | bool) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_string(key, value)


def _tensors(architecture: str, model: PreTrainedModel) -> dict[str, np.ndarray]:
    kind = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, model.config.num_hidden_layers)
    found = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        array = tensor.numpy()
        fused = re.fullmatch(r"model\.layers\.(\d+)\.mlp\.experts\.(gate_up|down)_proj", name)
        if fused is not None and fused.group(2) == "gate_up":
            gate, up = torch.from_numpy(array).chunk(2, dim=1)
            found[f"blk.{fused.group(1)}.ffn_gate_exps.weight"] = gate.numpy()
            found[f"blk.{fused.group(1)}.ffn_up_exps.weight"] = up.numpy()
        elif fused is not None:
            found[f"blk.{fused.group(1)}.ffn_down_exps.weight"] = array
        else:
            stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
            assert stored is not None, name
            found[stored] = _laid_out(architecture, name, array, model)
    return found


def _laid_out(architecture: str, name: str, array: np.ndarray, model: PreTrainedModel) -> np.ndarray:
    if architecture in NORMS_PLUS_ONE and name.endswith("norm.weight"):
        return array + 1
    if name.endswith("shared_expert_gate.weight"):
        return array[0]
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    part = name.split(".")[-2]
    if architecture == "llama" and part in heads:
        rows, *rest = array.shape
        return array.reshape(heads[part], 2, rows // heads[part] // 2, *rest).swapaxes(1, 2).reshape(rows, *rest)
    return array
