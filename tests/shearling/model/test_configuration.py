"""Configurations that leave out what transformers builds a model from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoConfig

from shearling.model.checkpoint import load_model, load_tokenizer, save_model
from shearling.recipe.model import ModelSection
from tests.support.tiny_models import VOCABULARY, build_tiny, tiny_tokenizer
from train.base.classifier_head import load_with_new_head, share_padding
from train.preflight import check_prunable, find_model

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}


def save_without_padding(family: str, directory: Path) -> Path:
    """As such models are published: config.json has no `pad_token_id`."""
    config = AutoConfig.for_model(family, **SHAPE, vocab_size=VOCABULARY, max_position_embeddings=64, pad_token_id=None)
    save_model(build_tiny(transformers.AutoModelForCausalLM.from_config, config), tiny_tokenizer(), directory)
    content = json.loads((directory / "config.json").read_text())
    content.pop("pad_token_id", None)
    (directory / "config.json").write_text(json.dumps(content))
    return directory


@pytest.mark.parametrize("family", ["phi", "stablelm", "gpt_neox"])
def test_a_decoder_without_a_padding_token_is_loaded_and_pruned(family, tmp_path) -> None:
    source = save_without_padding(family, tmp_path / "source")
    check_prunable(find_model(ModelSection(path=source, model_id="x")))
    model = load_model(source)
    with torch.no_grad():
        assert model(torch.tensor([[1, 2, 3]])).logits.isfinite().all()


@pytest.mark.parametrize("family", ["phi", "gpt_neox"])
def test_it_gets_one_where_it_becomes_a_classifier(family, tmp_path) -> None:
    source = save_without_padding(family, tmp_path / "source")
    check_prunable(find_model(ModelSection(path=source, model_id="x")), head="classifier")
    model, tokenizer = load_with_new_head(source, classes=("a", "b", "c"), seed=0), load_tokenizer(source)
    share_padding(model, tokenizer)
    assert model.config.pad_token_id == tokenizer.pad_token_id is not None
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
