"""What `genai_config.json` of a decoder can say; the rest of what ONNX Runtime GenAI reads there loads code or other
files.

GenAI loads a library for every section that names one, be it a stage of a pipeline or a vision model, and takes options
of sessions and providers that are paths of libraries and files, or addresses. So what is not known is refused: all that
is written by an export of this project is known, and so is what GenAI's own model builder writes for a decoder on a CPU
or with CUDA where no option asks it for paged attention or drafts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GRAPH = "model.onnx"
VALUE = "a number, a string, or a list of these"
ANY_NAME = "*"
VALUES = {ANY_NAME: VALUE}
SESSION_OPTIONS = {
    **dict.fromkeys(("log_id", "log_severity_level", "log_verbosity_level", "graph_optimization_level"), VALUE),
    **dict.fromkeys(("intra_op_num_threads", "inter_op_num_threads"), VALUE),
    **dict.fromkeys(("enable_cpu_mem_arena", "enable_mem_pattern"), VALUE),
    **dict.fromkeys(("ep.cuda.fpa_intb_gemm", "optimization.disable_specified_optimizers"), VALUE),
    "session.use_device_allocator_for_initializers": VALUE,
    "provider_options": [{"CPU": {}, "cuda": {"enable_cuda_graph": VALUE}}],
}
DECODER = {
    "filename": VALUE,
    **dict.fromkeys(("head_size", "hidden_size"), VALUE),
    **dict.fromkeys(("num_attention_heads", "num_hidden_layers", "num_key_value_heads"), VALUE),
    "inputs": VALUES,
    "outputs": VALUES,
    "sliding_window": VALUES,
    **dict.fromkeys(("layer_types", "conv_cache_size"), VALUE),
    "session_options": SESSION_OPTIONS,
}
GREEDY: dict[str, Any] = {
    "do_sample": False,
    **dict.fromkeys(("num_beams", "num_return_sequences"), 1),
    "repetition_penalty": 1.0,
    **dict.fromkeys(("no_repeat_ngram_size", "min_length"), 0),
}
"""Options of a search that takes the likeliest token each time, whatever `search` of a document says."""
TOKENS = ("bos", "eos", "pad", "bot", "eot", "bor", "eor")
DOCUMENT = {
    "model": {
        **dict.fromkeys(("type", "context_length", "vocab_size"), VALUE),
        **dict.fromkeys((f"{name}_token_id" for name in TOKENS), VALUE),
        "decoder": DECODER,
    },
    "search": VALUES,
}


def unknown_part(document: Any) -> str | None:
    """The first part of a document that is no decoder's, such as `model.decoder.pipeline`; None where there is none.

    Args:
        document: of `genai_config.json`; whatever it is.
    """
    part = _unknown(document, DOCUMENT, "")
    if part is None and document.get("model", {}).get("decoder", {}).get("filename") != GRAPH:
        return "model.decoder.filename"
    return part


def _unknown(value: Any, known: Any, place: str) -> str | None:
    if isinstance(known, Mapping):
        if not isinstance(value, dict):
            return place or "the whole"
        parts = [(item, known.get(name, known.get(ANY_NAME)), f"{place}.{name}") for name, item in value.items()]
    elif isinstance(known, list):
        if not isinstance(value, list):
            return place
        parts = [(item, known[0], place) for item in value]
    else:
        items = value if isinstance(value, list) else [value]
        return place if known is None or any(isinstance(item, (dict, list)) for item in items) else None
    found = (_unknown(item, inner, inside.removeprefix(".")) for item, inner, inside in parts)
    return next((part for part in found if part is not None), None)
