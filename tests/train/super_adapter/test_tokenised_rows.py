"""Training rows: what is learnt, what is masked, where the end token goes."""

from __future__ import annotations

import pytest
import torch

from shearling.evaluation.task import TaskRow
from tests.support.tiny_models import EOS, tiny_tokenizer
from train.super_adapter.tokenised_rows import IGNORED_LABEL, PadToBatch, RowTokeniser
from train.task.row_account import RowAccount


def row(prompt="The quick brown fox:", completion=" jumps") -> TaskRow:
    return TaskRow(id="0", prompt=prompt, choices=None, gold=None, completion=completion, text=prompt)


def tokenise(*rows, max_length=64, train_on_prompt=True, train_on_end=True, account=None):
    encode = RowTokeniser(tiny_tokenizer(), max_length, train_on_prompt, train_on_end)
    return encode(rows, account=account)


def learnt(encoded):
    return tiny_tokenizer().decode([label for label in encoded["labels"] if label != IGNORED_LABEL])


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


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        ("Is this headline sarcastic? Answer: ", "yes", " yes"),
        # One token covers the end of the prompt and all of the completion.
        ("The quick brown fo", "x jumps", " fox jumps"),
        ("Answer:\n", "no", "\nno"),
    ],
)
def test_the_answer_is_learnt_where_it_merges_with_the_prompt(prompt, completion, expected):
    (encoded,) = tokenise(row(prompt, completion), train_on_prompt=False)
    assert learnt(encoded) == f"{expected}{EOS}"


def test_the_end_token_is_learnt_once_or_not_at_all():
    whole, ended = row(), row(completion=f" jumps{EOS}")
    for example in (whole, ended):
        (encoded,) = tokenise(example, train_on_prompt=False)
        assert learnt(encoded) == f" jumps{EOS}"
    (encoded,) = tokenise(whole, train_on_prompt=False, train_on_end=False)
    assert learnt(encoded) == " jumps"
    assert encoded["input_ids"] == tiny_tokenizer()("The quick brown fox: jumps")["input_ids"]


def test_rows_that_are_cut_or_have_nothing_to_learn_are_counted_and_named():
    length = len(tiny_tokenizer()("The quick brown fox: jumps over")["input_ids"])
    rows = (row(), row("fox " * 50), row(completion=" jumps over"), row(completion=" jumps over the lazy dog"))
    account = RowAccount()
    encoded = tokenise(*rows, max_length=length, train_on_prompt=False, account=account)
    assert len(encoded) == 3
    assert account.counts == {"cut": 1, "unlabelled": 1}
    assert account.sentence(len(rows)) == (
        "of 4 rows 1 cut inside their completion (4), 1 left out because nothing to learn is left of them (2)"
    )


def test_a_first_token_has_nothing_before_it_that_could_predict_it():
    assert len(tiny_tokenizer()("The")["input_ids"]) == 1
    account = RowAccount()
    options = {"train_on_prompt": False, "train_on_end": False, "account": account}
    assert len(tokenise(row("T", "he"), row(), **options)) == 1
    assert account.counts == {"unlabelled": 1}


def test_the_end_token_needs_room():
    (whole,) = tokenise(row())
    length = len(whole["input_ids"])
    for max_length in (length, length - 1, length - 2):
        (cut,) = tokenise(row(), max_length=max_length)
        assert cut["input_ids"] == whole["input_ids"][:max_length]
    assert whole["input_ids"][-1] == tiny_tokenizer().convert_tokens_to_ids(EOS)


def test_many_rows_at_once_are_encoded_as_each_alone():
    rows = [row(), row("Answer: ", "yes"), row(completion=" over"), text_alone("the lazy dog"), row("T", "he quick")]
    for learn_prompt in (True, False):
        together = tokenise(*rows, train_on_prompt=learn_prompt)
        assert together == [one for each in rows for one in tokenise(each, train_on_prompt=learn_prompt)]


def text_alone(text):
    return TaskRow(id="0", prompt="", choices=None, gold=None, completion=text, text=text)


def test_a_text_alone_is_cut_into_sequences_and_loses_nothing():
    text = "The quick brown fox jumps over the lazy dog. " * 9
    whole = [*tiny_tokenizer()(text)["input_ids"], tiny_tokenizer().eos_token_id]
    for length in (8, 16, len(whole) - 1, len(whole), 512):
        account = RowAccount()
        parts = tokenise(text_alone(text), max_length=length, account=account)
        joined = [token for part in parts for token in part["input_ids"]]
        # A last token alone could not be learnt.
        assert joined == whole[: len(joined)]
        assert len(whole) - len(joined) == (len(whole) % length == 1)
        assert all(part["labels"] == part["input_ids"] for part in parts)
        assert all(len(part["input_ids"]) == length for part in parts[:-1])
        assert account.counts == {}


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
