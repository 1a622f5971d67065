"""Zeros in real files of every format and number type (invariant 42)."""

import pytest
import torch

from export.formats.onnx import write_onnx
from export.formats.openvino import write_openvino
from shearling.model.checkpoint import save_model
from tests.support.exported_files import count_zeros, stored_as
from tests.support.tiny_models import pruned_model, tiny_tokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]  # torch.onnx, optimum and torchao


@pytest.mark.parametrize(
    ("family", "weights"),
    [
        ("llama_tied_gqa", "fp32"),
        ("bloom", "fp32"),
        pytest.param("llama_tied_gqa", "fp16", marks=pytest.mark.slow),
        ("llama_tied_gqa", "int8"),
        ("llama_tied_gqa", "int4"),
    ],
)
def test_every_format_keeps_every_zero(tmp_path, family, weights):
    model, masks = pruned_model(family)
    save_model(model, tiny_tokenizer(), tmp_path / "model")
    write_openvino(model, tiny_tokenizer(), tmp_path / "openvino", stored_as(weights), sparsity={})
    write_onnx(model, tiny_tokenizer(), tmp_path / "onnx", stored_as(weights))
    checks = count_zeros(tmp_path, masks)
    assert set(checks) == {"model", "openvino", "onnx"}
    for check in checks.values():
        assert check.zeros == check.pruned == sum(int((~mask).sum()) for mask in masks.values())
        if weights == "fp32":
            assert check.extra_zeros == 0


def test_a_revived_weight_is_seen(tmp_path):
    model, masks = pruned_model("llama_tied_gqa")
    path, mask = next(iter(masks.items()))
    row, column = (~mask).nonzero()[0].tolist()
    with torch.no_grad():
        dict(model.named_modules())[path].weight[row, column] = 0.125
    save_model(model, tiny_tokenizer(), tmp_path / "model")
    write_openvino(model, tiny_tokenizer(), tmp_path / "openvino", stored_as("fp32"), sparsity={})
    for check in count_zeros(tmp_path, masks).values():
        assert check.pruned - check.zeros == 1
        assert check.by_module[path] == int((~mask).sum()) - 1
