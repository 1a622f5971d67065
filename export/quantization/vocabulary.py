"""The embedding and the output head rounded to four bits.

A head is a matrix like any other, whose inputs are the last hidden states. An embedding has no inputs: each of its rows
is added up as it is, so that its error is the squared error of the row. Where both are one matrix, both errors count:
the Gram matrix of the head, its mean diagonal scaled to one, and the identity beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from shearling.calibration.gram import Gram
from shearling.quantization.layerwise import BATCH, PASSES
from shearling.quantization.rounding import Rounded, round_matrix

if TYPE_CHECKING:
    from torch import Tensor, nn

EMBEDDING_SHARE = 0.1
"""Of the identity, beside a head's Gram matrix of mean diagonal one."""
BLOCK_ROWS = 8192
"""Rows that are rounded together: each is rounded by itself, and a vocabulary has many."""


@dataclass(frozen=True)
class Vocabulary:
    """The matrices with a row for each token.

    Attributes:
        embedding: path of the module that looks rows up.
        head: path of the linear that the logits come from.
        tied: whether both are one matrix.
        columns: of either.
    """

    embedding: str
    head: str
    tied: bool
    columns: int


def find_vocabulary(model: Any) -> Vocabulary:
    """Find both matrices of a causal language model."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    paths = {module: path for path, module in model.named_modules()}
    return Vocabulary(paths[embedding], paths[head], head.weight is embedding.weight, head.weight.shape[1])


def round_vocabulary(
    model: nn.Module, vocabulary: Vocabulary, windows: Sequence[Tensor], *, group_size: int, bf16: bool
) -> dict[str, Rounded]:
    """Round both, in place.

    Args:
        model: its layers rounded by now.
        vocabulary: of the model.
        windows: token ids [tokens], all of one length.
        group_size: divides the columns.
        bf16: whether hidden states are computed in it.

    Returns:
        Module path -> its weight; the same object for both where they are tied.
    """
    head, embedding = (model.get_submodule(path) for path in (vocabulary.head, vocabulary.embedding))
    hessian = _last_hidden_gram(model, windows, bf16=bf16).damped(where=vocabulary.head)
    identity = torch.eye(vocabulary.columns, device=hessian.device)
    if vocabulary.tied:
        hessian = hessian / hessian.diagonal().mean() + EMBEDDING_SHARE * identity
    rounded = {vocabulary.head: _round_rows(head.weight, hessian, group_size)}
    rounded[vocabulary.embedding] = (
        rounded[vocabulary.head] if vocabulary.tied else _round_rows(embedding.weight, identity, group_size)
    )
    return rounded


@torch.no_grad()
def _last_hidden_gram(model: Any, windows: Sequence[Tensor], *, bf16: bool) -> Gram:
    gram = Gram()
    device = next(model.parameters()).device
    for start in range(0, len(windows), BATCH):
        ids = torch.stack(list(windows[start : start + BATCH])).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1).float()
        gram.add_product(hidden.T @ hidden, tokens=len(hidden))
    return gram


def _round_rows(weight: Any, hessian: Tensor, group_size: int) -> Rounded:
    parts = []
    for rows in weight.detach().split(BLOCK_ROWS):
        part = round_matrix(rows, hessian, group_size=group_size, passes=PASSES)
        rows.copy_(part.weight)
        parts.append(part)
    codes, scales = (torch.cat([getattr(part, name) for part in parts]) for name in ("codes", "scales"))
    return Rounded(codes, scales, group_size)
