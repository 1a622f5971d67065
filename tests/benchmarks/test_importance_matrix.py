"""The importance matrix that a peer's quantizer is given."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch

from benchmarks.gguf_writer import write_gguf
from benchmarks.importance_matrix import write_importance
from tests.support.tiny_models import llama_tied_gqa, tiny_tokenizer


def test_it_has_the_mean_squares_of_what_enters_each_linear(tmp_path: Path) -> None:
    model = llama_tied_gqa().eval()
    windows = list(torch.randint(0, model.config.vocab_size, (11, 7)))
    found = np.load(write_importance(model, windows, tmp_path / "importance.npz"))
    layer = model.model.layers[0]
    with torch.no_grad():
        entering = layer.input_layernorm(model.model.embed_tokens(torch.stack(windows)))
    expected = entering.reshape(-1, entering.shape[-1]).square().mean(dim=0)
    for name in ("attn_q", "attn_k", "attn_v"):
        np.testing.assert_allclose(found[f"blk.0.{name}.weight"], expected, rtol=1e-5)


def test_its_names_and_sizes_are_those_of_the_file(tmp_path: Path) -> None:
    model = llama_tied_gqa().eval()
    windows = list(torch.randint(0, model.config.vocab_size, (3, 5)))
    found = np.load(write_importance(model, windows, tmp_path / "importance.npz"))
    file = gguf.GGUFReader(write_gguf(tmp_path / "model.gguf", model, tiny_tokenizer()))
    linears = {tensor.name: int(tensor.shape[0]) for tensor in file.tensors if tensor.name.startswith("blk.")}
    wanted = {name: columns for name, columns in linears.items() if "norm" not in name}
    assert {name: len(found[name]) for name in found} == wanted
    assert all((found[name] > 0).all() for name in found)
