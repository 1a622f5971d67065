"""Tiny random decoders whose heads are as wide as GroupQueryAttention takes them, one of each architecture."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests.support.tiny_models import VOCABULARY, build_tiny


def _make(model_class: Any, config_class: Any, **more: Any) -> PreTrainedModel:
    shape = {
        "hidden_size": 72,
        "intermediate_size": 100,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 256,
        "bos_token_id": None,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "initializer_range": 0.1,
    }
    return build_tiny(model_class, config_class(**(shape | more)))


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FUSED: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": functools.partial(_make, LlamaForCausalLM, LlamaConfig, tie_word_embeddings=True),
    "llama3": functools.partial(
        _make,
        LlamaForCausalLM,
        LlamaConfig,
        tie_word_embeddings=False,
        attention_bias=True,
        rope_parameters=LLAMA3_ROPE,
    ),
    "mistral": functools.partial(_make, MistralForCausalLM, MistralConfig, sliding_window=5),
    "qwen2": functools.partial(
        _make,
        Qwen2ForCausalLM,
        Qwen2Config,
        hidden_size=64,
        use_sliding_window=True,
        sliding_window=6,
        max_window_layers=1,
        tie_word_embeddings=True,
    ),
    "qwen3": functools.partial(_make, Qwen3ForCausalLM, Qwen3Config, tie_word_embeddings=False),
    "phi3": functools.partial(_make, Phi3ForCausalLM, Phi3Config, hidden_size=64, sliding_window=64),
    "gemma": functools.partial(_make, GemmaForCausalLM, GemmaConfig, num_key_value_heads=1),
}
"""Name -> maker: tied and not, biases, windows in some layers, norms of heads, fused projections, scaled embeddings."""
