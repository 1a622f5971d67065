"""The stated length is the longest text that a model reads."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModel

from shearling.model.context_length import PADDING_FIRST, stated_length

SIZES = {
    "hidden_size": 24,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 40,
    "max_position_embeddings": 16,
}
OWN = {
    "longformer": {"attention_window": [4]},
    "luke": {"entity_vocab_size": 4, "entity_emb_size": 8},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
}


def reads(model, tokens: int) -> bool:
    try:
        with torch.no_grad():
            model(input_ids=torch.full((1, tokens), 7), attention_mask=torch.ones(1, tokens, dtype=torch.long))
    except (IndexError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize("family", [*sorted(PADDING_FIRST), "bert"])
def test_it_is_the_longest_that_runs(family):
    config = AutoConfig.for_model(family, **SIZES, **OWN.get(family, {}))
    length = stated_length(config.to_dict())
    assert length == (16 if family == "bert" else 14)
    assert stated_length({**config.to_dict(), "pad_token_id": None}) == length
    model = AutoModel.from_config(config).eval()
    assert reads(model, length)
    assert not reads(model, length + 1)


def test_padding_elsewhere_leaves_as_many_positions_less():
    config = {"model_type": "roberta", "max_position_embeddings": 16}
    assert stated_length({**config, "pad_token_id": 0}) == 15
    assert stated_length({**config, "pad_token_id": 3}) == 12
    assert stated_length({"model_type": "roberta"}) is None
