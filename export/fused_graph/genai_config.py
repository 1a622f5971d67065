"""`genai_config.json`: what ONNX Runtime GenAI reads before it opens the graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from export.fused_graph.decoder import GENAI_TYPES, FusedDecoder
from export.fused_graph.fuse import CACHE, PARTS, PRESENT

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

GENAI_CONFIG = "genai_config.json"
NO_TOKEN = 0
"""Where GenAI wants the number of a token that the model does not have and a decoder does not need."""


def genai_config(
    decoder: FusedDecoder, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, filename: str
) -> dict[str, Any]:
    """The whole document. Sampling is greedy unless who generates says otherwise.

    Args:
        decoder: read from the model.
        model: whose configurations name the tokens that begin and end a text.
        tokenizer: its end token ends a turn of a chat.
        filename: of the graph, beside the document.
    """
    ends = _end_tokens(model, tokenizer)
    begin, pad = (_token(model, tokenizer, f"{name}_token_id") for name in ("bos", "pad"))
    names = {
        f"{prefix}_{part}_names": pattern.format("%d", part)
        for prefix, pattern in (("past", CACHE), ("present", PRESENT))
        for part in PARTS
    }
    return {
        "model": {
            "type": GENAI_TYPES[decoder.model_type],
            "bos_token_id": NO_TOKEN if begin is None else begin,
            "eos_token_id": ends,
            "pad_token_id": (ends[0] if ends else NO_TOKEN) if pad is None else pad,
            "context_length": decoder.context,
            "vocab_size": decoder.vocabulary,
            "decoder": {
                "session_options": {"provider_options": []},
                "filename": filename,
                "head_size": decoder.head_size,
                "hidden_size": decoder.hidden,
                "num_attention_heads": decoder.heads,
                "num_hidden_layers": len(decoder.layers),
                "num_key_value_heads": decoder.key_value_heads,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    **{name: value for name, value in names.items() if name.startswith("past")},
                },
                "outputs": {
                    "logits": "logits",
                    **{name: value for name, value in names.items() if name.startswith("present")},
                },
            },
        },
        "search": {"do_sample": False, "max_length": decoder.context, "past_present_share_buffer": True},
    }


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Every token that ends a text, those of the configurations first."""
    ends: dict[int, None] = {}
    for source in (getattr(model, "generation_config", None), model.config, tokenizer):
        value = getattr(source, "eos_token_id", None)
        ends |= dict.fromkeys(item for item in (value if isinstance(value, list) else [value]) if item is not None)
    return list(ends)


def _token(model: Any, tokenizer: Any, name: str) -> int | None:
    values = (getattr(source, name, None) for source in (model.config, tokenizer))
    return next((value for value in values if isinstance(value, int)), None)
