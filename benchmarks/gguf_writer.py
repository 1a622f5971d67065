"""A Llama with its tokenizer as a GGUF file, as llama.cpp's converter lays it out: q and k rows interleaved for its
rotary form, weights as they are.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from shearling.errors import ModelUnsupported
from shearling.model.gguf_tokenizer import CONTROL, SPLITTING, USER_DEFINED, pre_tokenizer

NORMAL, UNUSED = 1, 5
"""Values of `tokenizer.ggml.token_type`, beside those of `shearling.model.gguf_tokenizer`."""

NAMED_BY_CONVERTER = ("smollm", "gpt-2", "qwen2", "llama-bpe")
"""Of the pre-tokenizers that split alike, the name that llama.cpp's converter writes."""

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    pre: str | None = None,
    kind: str = "gpt2",
) -> Path:
    """Write a Llama.

    Args:
        path: of the file.
        model: its weights are written in their own type.
        tokenizer: of the model, byte-level BPE.
        pre: name of the pre-tokenizer; None finds it by how the tokenizer splits.
        kind: of tokenizer.

    Returns:
        The path.

    Raises:
        ModelUnsupported: no name is known here for how the tokenizer splits.
    """
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(path.stem)
    _add_shape(writer, model.config)
    _add_tokenizer(writer, tokenizer, vocabulary=model.config.vocab_size, pre=pre or _name_of(tokenizer), kind=kind)
    for name, tensor in _tensors(model).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_shape(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _add_tokenizer(
    writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast, *, vocabulary: int, pre: str, kind: str
) -> None:
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = {index: token for token, index in tokenizer.get_vocab().items()}
    added = {token["content"]: CONTROL if token["special"] else USER_DEFINED for token in state["added_tokens"]}
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre(pre)
    # llama.cpp wants a token for every row of the embedding.
    writer.add_token_list([tokens.get(index, f"[PAD{index}]") for index in range(vocabulary)])
    writer.add_token_types(
        [added.get(tokens[index], NORMAL) if index in tokens else UNUSED for index in range(vocabulary)]
    )
    writer.add_token_merges([" ".join(merge) for merge in state["model"]["merges"]])
    for add, token in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if token is not None:
            add(token)
    writer.add_add_bos_token(tokenizer("a").input_ids[0] == tokenizer.bos_token_id)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _name_of(tokenizer: PreTrainedTokenizerFast) -> str:
    own = _described(tokenizer.backend_tokenizer.pre_tokenizer)
    for name in NAMED_BY_CONVERTER:
        if _described(pre_tokenizer(SPLITTING[name])) == own:
            return name
    raise ModelUnsupported(f"no name is known for the pre-tokenizer {own}", where=tokenizer.name_or_path)


def _described(splitter: Any) -> Any:
    return json.loads(splitter.__getstate__())


def _tensors(model: PreTrainedModel) -> dict[str, np.ndarray]:
    config, state = model.config, model.state_dict()
    tensors = {
        "token_embd.weight": state["model.embed_tokens.weight"].numpy(),
        "output_norm.weight": state["model.norm.weight"].numpy(),
    }
    if not config.tie_word_embeddings:
        tensors["output.weight"] = state["lm_head.weight"].numpy()
    for layer in range(config.num_hidden_layers):
        for ours, theirs in NAMES.items():
            tensor = state[f"model.layers.{layer}.{ours}.weight"]
            heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(theirs)
            tensors[f"blk.{layer}.{theirs}.weight"] = tensor.numpy() if heads is None else _interleave(tensor, heads)
    return tensors


def _interleave(tensor: Tensor, heads: int) -> np.ndarray:
    rows, columns = tensor.shape
    return np.ascontiguousarray(
        tensor.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns).numpy()
    )
