"""Quantized checkpoints are refused by name, whatever shows that they are."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from shearling.errors import ModelUnsupported
from shearling.model.checkpoint_safety import check_checkpoint
from shearling.recipe.model import ModelSection
from tests.support.json_files import edit_json
from tests.support.tiny_models import save_tiny
from train.preflight import find_model

SECTIONS = {
    "gptq, 4 bits": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "awq, 4 bits": {"quant_method": "awq", "bits": 4, "version": "gemm"},
    "bitsandbytes, 4 bits": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "bitsandbytes, 8 bits": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
    "mxfp4": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
}


@pytest.mark.parametrize("words", SECTIONS)
@pytest.mark.parametrize("nested", [False, True])
def test_a_configuration_says_so(words, nested, tmp_path):
    source = save_tiny("llama", tmp_path)
    section = {"quantization_config": SECTIONS[words]}
    edit_json(source / "config.json", **({"text_config": section} if nested else section))
    for refuse in (check_checkpoint, lambda path: find_model(ModelSection(path=path, model_id="x"))):
        with pytest.raises(ModelUnsupported) as caught:
            refuse(source)
        assert caught.value.message == f"the checkpoint is quantized ({words})"
        assert caught.value.exit_code == 3
        assert "bfloat16" in caught.value.remedy


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("quantize_config.json", {"bits": 3, "group_size": 128}, "gptq, 3 bits"),
        ("quant_config.json", {"w_bit": 4, "zero_point": True}, "awq, 4 bits"),
    ],
)
def test_a_file_beside_it_says_so(file, content, words, tmp_path):
    source = save_tiny("llama", tmp_path)
    (source / file).write_text(json.dumps(content))
    with pytest.raises(ModelUnsupported, match=words):
        check_checkpoint(source)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("self_attn.q_proj.qweight", "gptq or awq"),
        ("self_attn.q_proj.weight_scale_inv", "fp8"),
        ("mlp.experts.gate_up_proj_blocks", "mxfp4"),
        ("self_attn.q_proj.weight.absmax", "bitsandbytes"),
    ],
)
def test_names_of_tensors_say_so(name, method, tmp_path):
    source = save_tiny("llama", tmp_path)
    save_file({f"model.layers.0.{name}": torch.ones(4, dtype=torch.uint8)}, source / "model.safetensors")
    with pytest.raises(ModelUnsupported, match=rf"quantized \({method}\)"):
        check_checkpoint(source)
