"""Rows, windows and generated texts fit the positions of a model, or are refused before anything is pruned."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from shearling.errors import RecipeInvalid
from tests.support.tiny_models import VOCABULARY, save_tiny
from tests.support.tiny_runs import tiny_recipe
from train.positions import check_positions
from train.preflight import check_structure
from train.stage import run_recipe
from train.super_adapter.classified_rows import PadClassified

SIZES = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": VOCABULARY}


def model_with_table(family: str, positions: int) -> PreTrainedModel:
    sizes = {**SIZES, "max_position_embeddings": positions}
    if family == "bert":
        return BertForSequenceClassification(BertConfig(**sizes, intermediate_size=24)).eval()
    if family == "roberta":
        return RobertaForSequenceClassification(RobertaConfig(**sizes, intermediate_size=24, pad_token_id=1)).eval()
    return OPTForCausalLM(OPTConfig(**sizes, ffn_dim=24, word_embed_proj_dim=24)).eval()


def reads_a_row(model: PreTrainedModel, length: int) -> bool:
    """Whether it takes a batch of training with a row of so many tokens and a short one."""
    pad = model.config.pad_token_id
    batch = PadClassified(pad)([{"input_ids": [7] * tokens, "labels": 0} for tokens in (length, 3)])
    try:
        with torch.no_grad():
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    except (IndexError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize(
    ("family", "positions", "most"),
    [
        ("bert", 64, 64),
        ("bert", 60, 56),
        ("roberta", 66, 64),
        ("roberta", 64, 62),
        ("roberta", 60, 58),
        ("opt", 64, 64),
    ],
)
def test_the_longest_row_that_is_accepted_is_the_longest_that_runs(family, positions, most, tmp_path):
    model = model_with_table(family, positions)
    assert reads_a_row(model, most)
    assert not reads_a_row(model, most + 1)
    check_positions(tiny_recipe(tmp_path, task={"max_length": most}), model, tmp_path)
    with pytest.raises(RecipeInvalid, match=f"up to {most + 1} tokens, the model has {most} positions") as caught:
        check_positions(tiny_recipe(tmp_path, task={"max_length": most + 1}), model, tmp_path)
    assert caught.value.where == "task.max_length"
    assert str(most) in caught.value.remedy


def test_windows_do_not_begin_in_the_places_of_padding(tmp_path):
    recipe = tiny_recipe(tmp_path, task={"max_length": 8}, sparsity={"method": "wanda"})
    check_positions(recipe, model_with_table("roberta", 18), tmp_path)
    with pytest.raises(RecipeInvalid, match="windows of 16 tokens, the model has 15 positions") as caught:
        check_positions(recipe, model_with_table("roberta", 17), tmp_path)
    assert caught.value.where == "sparsity.calibration.seq_len"


CHATS = {"name": "more", "path": "headlines.jsonl", "text": "{{ headline }}"}


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"task": {"max_length": 257}}, "task.max_length"),
        ({"data": [{**CHATS, "max_length": 300}]}, "data.more.max_length"),
    ],
)
def test_computed_positions_have_an_end_too(options, where, tmp_path):
    """A rotary model runs behind its last position, where it has learnt nothing."""
    with pytest.raises(RecipeInvalid, match="the model has 256 positions") as caught:
        run_recipe(tiny_recipe(tmp_path, **options), tmp_path / "run")
    assert caught.value.where == where
    assert not (tmp_path / "run" / "sparse").exists()


def test_what_is_generated_leaves_room_for_a_prompt(tmp_path):
    generated = {"choices": None, "gold": None, "completion": " {{ label }}", "answer": "{{ label }}"}
    base = save_tiny("llama_tied_gqa", tmp_path / "source")
    check_structure(tiny_recipe(tmp_path, task={**generated, "max_new_tokens": 255}), base)
    with pytest.raises(RecipeInvalid, match="up to 256 generated tokens") as caught:
        check_structure(tiny_recipe(tmp_path, task={**generated, "max_new_tokens": 256}), base)
    assert caught.value.where == "task.max_new_tokens"


def test_a_model_that_is_only_pruned_learns_no_rows(tmp_path):
    recipe = tiny_recipe(tmp_path, task={"max_length": 512}).model_copy(update={"adapter": None, "train": None})
    check_structure(recipe, tmp_path / "source")
