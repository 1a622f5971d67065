"""The configuration of a GGUF file's model, as transformers' own reader gives it, with what that leaves out.

The reader knows which architecture of transformers a name in the file means: `qwen3moe` is `qwen3_moe`, `gemma3` is
`gemma3_text`. It passes over some sizes, and over how rotary positions are stretched; a model without them would load
and compute something else.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from shearling.errors import ModelUnsupported
from shearling.model.gguf_header import GgufHeader, read_tensor

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

SIZES = {
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "context_length": "n_positions",
    "feed_forward_length": "n_inner",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
"""Keys of a file, behind the name of its architecture -> attributes of configurations that have such."""
LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}
"""Those scale attention by the width of the hidden states, all other Gemmas by the width of a head; no key says so."""
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")
FREQUENCIES = "rope_freqs.weight"
"""By which factor each frequency of the rotary embedding is lowered."""
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""How every Llama since 3.1 stretches its positions, but for the factor."""
ELSEWHERE = "Take the Hugging Face directory instead"


def read_gguf_config(header: GgufHeader) -> PreTrainedConfig:
    """The configuration; no weight is read.

    Raises:
        ModelUnsupported: transformers' reader does not know the architecture, or loses what the model needs; or it is
            no decoder with attention.
    """
    import transformers

    architecture = header.require("general.architecture")
    try:
        config = transformers.AutoConfig.from_pretrained(
            str(header.path.parent), gguf_file=header.path.name, local_files_only=True
        )
    except (ValueError, KeyError, TypeError, NotImplementedError, OSError) as error:
        # What its reader raises, by architecture, of names, fields and types that it does not know.
        raise ModelUnsupported(
            f"transformers {transformers.__version__} cannot read a GGUF of architecture {architecture!r}: {error}",
            where=header.path,
            remedy=ELSEWHERE,
        ) from error
    _check_decoder(header, config)
    # A name of the conversion, not of the architecture.
    config.__dict__.pop("_model_name_or_path", None)
    _check_experts(header, config, architecture)
    for key, attribute in SIZES.items():
        size = header.fields.get(f"{architecture}.{key}")
        if size and hasattr(config, attribute):
            setattr(config, attribute, size)
    if architecture in LAYERS_OF_27B:
        largest = config.num_hidden_layers == LAYERS_OF_27B[architecture]
        width = config.hidden_size // config.num_attention_heads if largest else config.head_dim
        config.query_pre_attn_scalar = width
    _name_tokens(header, config)
    _stretch(header, config, architecture)
    return config


def _name_tokens(header: GgufHeader, config: Any) -> None:
    """Give the configuration the special tokens of the file: it has those of its class, which are of another model."""
    ends = header.end_ids
    config.eos_token_id = list(ends) if len(ends) > 1 else ends[0] if ends else None
    config.bos_token_id = header.fields.get("tokenizer.ggml.bos_token_id")
    config.pad_token_id = header.fields.get("tokenizer.ggml.padding_token_id")


def _check_decoder(header: GgufHeader, config: PreTrainedConfig) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or not hasattr(config, "num_attention_heads"):
        raise ModelUnsupported(
            f"{config.model_type!r} is no decoder whose layers attend",
            where=header.path,
            remedy="docs/models.md says what is supported",
        )


def _check_experts(header: GgufHeader, config: PreTrainedConfig, architecture: str) -> None:
    experts = int(header.fields.get(f"{architecture}.expert_count") or 0)
    if experts and not any(hasattr(config, name) for name in EXPERT_COUNTS):
        raise ModelUnsupported(
            f"a mixture of {experts} experts, which transformers' GGUF reader takes for a dense {config.model_type}",
            where=header.path,
            remedy=ELSEWHERE,
        )


def _stretch(header: GgufHeader, config: PreTrainedConfig, architecture: str) -> None:
    """Give the configuration the rotary scaling of the file, and the share of a head that is turned."""
    turned = header.fields.get(f"{architecture}.rope.dimension_count")
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if turned and turned < width:
        _set_rope(config, {"partial_rotary_factor": turned / width})
    kind = header.fields.get(f"{architecture}.rope.scaling.type", "none")
    factor = header.fields.get(f"{architecture}.rope.scaling.factor") or header.fields.get(
        f"{architecture}.rope.scale_linear"
    )
    if any(name.startswith("rope_factors_") for name in header.tensors):
        kind = "longrope"
    if kind == "linear" or (kind == "none" and factor not in (None, 0.0, 1.0)):
        _set_rope(config, {"rope_type": "linear", "factor": float(factor or 1.0)})
    elif kind != "none":
        raise ModelUnsupported(
            f"its positions are stretched by {kind!r}, which transformers' GGUF reader loses",
            where=header.path,
            remedy=ELSEWHERE,
        )
    if FREQUENCIES in header.tensors:
        _set_rope(config, _llama3_scaling(header, config))


def _set_rope(config: Any, scaling: dict[str, Any]) -> None:
    parameters = config.rope_parameters
    # Where layers differ, those that see everything are stretched.
    nested = parameters.get("full_attention")
    target = nested if isinstance(nested, dict) else parameters
    target |= scaling


def _llama3_scaling(header: GgufHeader, config: Any) -> dict[str, Any]:
    """The scaling that gives the file's factors.

    Raises:
        ModelUnsupported: none of Llama's does.
    """
    stored = read_tensor(header, FREQUENCIES).astype(np.float64).ravel()
    factor = float(np.round(stored.max(), 3))
    theta, width = float(config.rope_parameters["rope_theta"]), 2 * stored.size
    wavelengths = 2 * math.pi * theta ** (np.arange(0, width, 2) / width)
    low, high = LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"]
    turns = LLAMA3["original_max_position_embeddings"] / wavelengths
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if not np.allclose(stored, expected, rtol=1e-3):
        raise ModelUnsupported(
            "the factors of its rotary frequencies are not those of Llama 3, and transformers' GGUF reader loses them",
            where=f"{header.path}: {FREQUENCIES}",
            remedy=ELSEWHERE,
        )
    return {"rope_type": "llama3", "factor": factor, **LLAMA3}
