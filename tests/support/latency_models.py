"""Models of any depth that differ in nothing else."""

from __future__ import annotations

from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM

from tests.support.deployments import write_openvino


def write_layers(directory: Path, layers: int) -> Path:
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=2,
    )
    return write_openvino(LlamaForCausalLM(config).eval(), directory)
