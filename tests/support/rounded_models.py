"""Models with the weights that integers stand for, and how far they are from what they were."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch
from transformers import PreTrainedModel

from export.quantization.text import windows_of
from shearling.calibration.windows import token_stream
from shearling.kernel.packed_format import Matrix
from tests.support.tiny_models import CORPUS, tiny_tokenizer


def rounded(model: PreTrainedModel, matrices: Mapping[str, Matrix]) -> PreTrainedModel:
    """The model with the weights that the integers stand for."""
    changed = copy.deepcopy(model)
    for path, matrix in matrices.items():
        scales = np.repeat(matrix.scales.astype(np.float32), matrix.group_size, axis=1)
        with torch.no_grad():
            changed.get_submodule(path).weight.copy_(torch.from_numpy(matrix.values * scales))
    return changed


def divergence(model: PreTrainedModel, other: PreTrainedModel) -> float:
    """Mean KL on windows of other places and another length than the calibration's."""
    ids = torch.stack(windows_of([token_stream([" ".join(CORPUS)], tiny_tokenizer())], 16, seed=9))[:, :40]
    with torch.no_grad():
        wanted, found = (item(input_ids=ids).logits.log_softmax(-1) for item in (model, other))
    return float((wanted.exp() * (wanted - found)).sum(-1).mean())
