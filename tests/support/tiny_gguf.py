"""A tiny Llama as a GGUF file, written as llama.cpp's converter lays it out: q and k rows interleaved for its rotary
form."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

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


def write_tiny_gguf(
    path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, *, pre: str = "smollm", kind: str = "gpt2"
) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    add_shape(writer, model.config)
    _add_tokenizer(writer, tokenizer, pre=pre, kind=kind)
    for name, tensor in gguf_tensors(model).items():
        writer.add_tensor(name, tensor)
    write_to_file(writer)
    return path


def write_to_file(writer: gguf.GGUFWriter) -> None:
    """Write everything that was added."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_shape(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    """What the header says of a Llama."""
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast, *, pre: str, kind: str) -> None:
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = tokenizer.get_vocab()
    special = {token["content"] for token in state["added_tokens"]}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in state["model"]["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(tokenizer.chat_template)


def gguf_tensors(model: PreTrainedModel) -> dict[str, np.ndarray]:
    """The weights of a Llama under llama.cpp's names."""
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
