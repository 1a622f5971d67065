"""What llama.cpp's quantizer weighs its errors with: the mean squares of what enters every linear, by column, as
llama-imatrix collects them. Runs in torch, so that the text is the very text that our own integers are rounded on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmarks.gguf_writer import NAMES

BATCH = 8


def write_importance(model: PreTrainedModel, windows: Sequence[Tensor], path: Path) -> Path:
    """Write the matrix of a Llama.

    Args:
        model: whose weights are to be quantized.
        windows: of calibration text, each [tokens] int64, all of one length.
        path: a `.npz`, with an array [columns] float32 by the tensor's name in a GGUF file.

    Returns:
        The path.
    """
    sums: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def add(_module: nn.Module, inputs: Any, _output: Any) -> None:
            squares = inputs[0].double().square().sum(dim=(0, 1))
            sums[name] = sums[name] + squares if name in sums else squares

        return add

    with ExitStack() as hooks, torch.no_grad():
        for layer in range(model.config.num_hidden_layers):
            for ours, theirs in NAMES.items():
                module = model.get_submodule(f"model.layers.{layer}.{ours}")
                if isinstance(module, nn.Linear):
                    hooks.enter_context(module.register_forward_hook(watch(f"blk.{layer}.{theirs}.weight")))
        body = model.get_submodule("model")
        for start in range(0, len(windows), BATCH):
            body(input_ids=torch.stack(list(windows[start : start + BATCH])), use_cache=False)
    tokens = sum(len(window) for window in windows)
    arrays: dict[str, Any] = {name: (total / tokens).float().numpy() for name, total in sums.items()}
    np.savez(path, **arrays)
    return path
