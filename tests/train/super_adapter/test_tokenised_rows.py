"""Training rows: what is learnt, what is masked, where the end token goes."""

from __future__ import annotations

import pytest
import torch

from shearling.errors import RecipeInvalid
from shearling.evaluation.task import TaskRow
from tests.support.tiny_models import EOS, tiny_tokenizer
from train.super_adapter.tokenised_rows import IGNORED_LABEL, PadToBatch, tokenise_rows


def row(prompt="The quick brown fox:", completion=" jumps") -> TaskRow:
    return TaskRow(id="0", prompt=prompt, choices=None, gold=None, completion=completion, text=prompt)


def tokenise(*rows, max_length=64, train_on_prompt=True):
    return tokenise_rows(rows, tiny_tokenizer(), max_length=max_length, train_on_prompt=train_on_prompt)


def test_prompt_and_completion_are_encoded_as_one_text():
    tokenizer = tiny_tokenizer()
    (encoded,) = tokenise(row())
    assert encoded["input_ids"] == [
        *tokenizer("The quick brown fox: jumps")["input_ids"],
        tokenizer.convert_tokens_to_ids(EOS),
    ]
    assert encoded["labels"] == encoded["input_ids"]


def test_the_prompt_can_be_left_out_of_the_loss():
    tokenizer = tiny_tokenizer()
    (encoded,) = tokenise(row(), train_on_prompt=False)
    learnt = [label for label in encoded["labels"] if label != IGNORED_LABEL]
    assert tokenizer.decode(learnt) == f" jumps{EOS}"
    assert encoded["labels"][-len(learnt) :] == learnt == encoded["input_ids"][-len(learnt) :]


def test_the_end_token_needs_room():
    (whole,) = tokenise(row())
    length = len(whole["input_ids"])
    for max_length in (length, length - 1, length - 2):
        (cut,) = tokenise(row(), max_length=max_length)
        assert cut["input_ids"] == whole["input_ids"][:max_length]
    assert whole["input_ids"][-1] == tiny_tokenizer().convert_tokens_to_ids(EOS)


def test_rows_without_anything_to_learn_are_dropped_and_none_left_is_an_error():
    long = row(prompt="fox " * 50)
    assert len(tokenise(row(), long, max_length=24, train_on_prompt=False)) == 1
    with pytest.raises(RecipeInvalid, match="24 tokens") as caught:
        tokenise(long, max_length=24, train_on_prompt=False)
    assert caught.value.where == "task.max_length"


def test_batches_are_padded_on_the_right_to_a_multiple_of_eight():
    rows = [
        {"input_ids": list(range(1, 1 + length)), "labels": [IGNORED_LABEL, *range(2, 1 + length)]}
        for length in (3, 9, 5)
    ]
    batch = PadToBatch(0)(rows)
    assert {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in batch.items()} == dict.fromkeys(
        ("input_ids", "attention_mask", "labels"), ((3, 16), torch.int64)
    )
    for index, length in enumerate((3, 9, 5)):
        assert batch["input_ids"][index].tolist() == rows[index]["input_ids"] + [0] * (16 - length)
        assert batch["attention_mask"][index].tolist() == [1] * length + [0] * (16 - length)
        assert batch["labels"][index].tolist() == rows[index]["labels"] + [IGNORED_LABEL] * (16 - length)
    assert PadToBatch(0)([{"input_ids": [1] * 8, "labels": [1] * 8}])["input_ids"].shape == (1, 8)
