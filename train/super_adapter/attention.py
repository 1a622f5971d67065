"""Which attention trains fastest on short rows.

On a CPU the backward pass of torch's fused attention has a cost per row that short rows never earn back: at 16 x 32
tokens, forward and backward take six times as long as plain matrix products (torch 2.13, Zen 4). From a few hundred
tokens on it is the other way round, and the plain form would also hold a matrix of length x length.

Both compute the same, but for models that cap the scores of attention, as Gemma 2 does: transformers caps them in the
plain form alone, and pruning, search and exports use the fused one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

SHORT_TOKENS = 128


def use_fast_attention(model: PreTrainedModel, *, max_length: int) -> None:
    """Change the model to plain attention where it trains on a CPU, no row is longer than `SHORT_TOKENS`, and it
    computes the same.
    """
    # Not where the model stands now: the Trainer moves it later.
    if not torch.cuda.is_available() and max_length <= SHORT_TOKENS and not _caps_scores(model.config):
        model.set_attn_implementation("eager")


def _caps_scores(config: PreTrainedConfig) -> bool:
    sections = [config, *(getattr(config, name, None) for name in config.sub_configs)]
    return any(getattr(section, "attn_logit_softcapping", None) is not None for section in sections)
