"""Tiny packed decoders whose attention goes into their layers."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from export.formats.openvino import MODEL_XML, write_openvino
from tests.support.exported_files import stored_as
from tests.support.tiny_models import VOCABULARY, tiny_tokenizer

SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 2048,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.1,
}


def write_packed(directory: Path, model: PreTrainedModel) -> Path:
    """A packed IR of a model with half of its weights at zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_proj.weight"):
                parameter.mul_(torch.rand(parameter.shape, generator=generator) > 0.5)
    write_openvino(model, tiny_tokenizer(), directory, stored_as("int8", kernel="sparse"), sparsity={})
    return directory / MODEL_XML


def seeded_decoder(model_class, config) -> PreTrainedModel:
    torch.manual_seed(0)
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # a product with ones is left out of the graph
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model
