"""Which attention trains fastest on short rows.

On a CPU the backward pass of torch's fused attention has a cost per row that short rows never earn back: at 16 x 32
tokens, forward and backward take six times as long as plain matrix products (torch 2.13, Zen 4). From a few hundred
tokens on it is the other way round, and the plain form would also hold a matrix of length x length.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

SHORT_TOKENS = 128


def use_fast_attention(model: PreTrainedModel, *, max_length: int) -> None:
    """Change the model to plain attention where it trains on a CPU and no row is longer than `SHORT_TOKENS`."""
    # Not where the model stands now: the Trainer moves it later.
    if not torch.cuda.is_available() and max_length <= SHORT_TOKENS:
        model.set_attn_implementation("eager")
