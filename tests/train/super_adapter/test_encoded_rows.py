"""What is learnt, in files: the rows that the tokeniser makes, whatever the batches, and nothing of them in memory."""

from __future__ import annotations

import gc
import re

import pytest
from tokenizers.processors import TemplateProcessing

from shearling.errors import ModelUnsupported, RecipeInvalid
from shearling.evaluation.task import TaskRow, read_rows, write_rows
from tests.support.memory import PeakOfPrivateMemory
from tests.support.tiny_models import BEYOND, EOS, VOCABULARY, longer_tokenizer, tiny_tokenizer
from train.super_adapter.classified_rows import ClassifiedRows
from train.super_adapter.encoded_rows import BATCH_ROWS, check_rows, encode_rows, load_encoded
from train.super_adapter.tokenised_rows import RowTokeniser
from train.task.row_account import RowAccount

# Two batches and a part of one.
COUNT = 2 * BATCH_ROWS + 40


def question(number: int, *, words: int = 3) -> TaskRow:
    prompt = f"Question {number}:" + " the lazy dog" * (number % words)
    choices = (" no", " yes")
    return TaskRow(
        id=f"{number:064d}",
        prompt=prompt,
        choices=choices,
        gold=number % 2,
        completion=choices[number % 2],
        text=prompt,
    )


def encode(directory, tokeniser, *, readable=VOCABULARY, where="task"):
    account, file = RowAccount(), directory / "rows" / "train.arrow"
    total = encode_rows(directory, "train", tokeniser, file, account, readable=readable, where=where)
    return load_encoded(file), account, total


def test_files_hold_what_the_tokeniser_makes_of_all_rows_at_once(tmp_path):
    write_rows(tmp_path, "train", [question(number, words=9) for number in range(COUNT)])
    tokeniser = RowTokeniser(tiny_tokenizer(), max_length=24, train_on_prompt=False)
    found, account, total = encode(tmp_path, tokeniser)
    expected_account = RowAccount()
    expected = tokeniser(read_rows(tmp_path, "train"), account=expected_account)
    assert total == COUNT
    assert len(found) == len(expected) < COUNT
    for name in ("input_ids", "labels", "gold"):
        assert found[name][:] == [row[name] for row in expected]
    assert found["length"][:] == [len(row["input_ids"]) for row in expected]
    assert account.sentence(COUNT) == expected_account.sentence(COUNT)
    assert [path.name for path in (tmp_path / "rows").iterdir()] == ["train.arrow"]


def test_a_batch_may_be_left_out_whole(tmp_path):
    rows = [question(number) for number in range(COUNT)]
    rows[:BATCH_ROWS] = [row.model_copy(update={"prompt": "fox " * 99}) for row in rows[:BATCH_ROWS]]
    write_rows(tmp_path, "train", rows)
    found, account, _ = encode(tmp_path, RowTokeniser(tiny_tokenizer(), max_length=24, train_on_prompt=False))
    assert account.counts["unlabelled"] >= BATCH_ROWS
    assert len(found) == COUNT - account.counts["unlabelled"]
    write_rows(tmp_path, "train", rows[:BATCH_ROWS])
    for where in ("task", "data.more"):
        with pytest.raises(RecipeInvalid, match="cut before its completion at 24 tokens") as caught:
            encode(tmp_path, RowTokeniser(tiny_tokenizer(), max_length=24, train_on_prompt=False), where=where)
        assert caught.value.where == f"{where}.max_length"


def test_a_token_that_the_model_has_no_embedding_of_is_refused_in_whatever_row(tmp_path):
    rows = [question(number) for number in range(COUNT)]
    rows[-1] = rows[-1].model_copy(update={"prompt": f"Question {BEYOND}:"})
    write_rows(tmp_path, "train", rows)
    tokeniser = RowTokeniser(longer_tokenizer(), max_length=24, train_on_prompt=True)
    expected = rf"the token '{re.escape(BEYOND)}', id {VOCABULARY}, and the model has {VOCABULARY} embeddings"
    for refuse in (
        lambda: encode(tmp_path, tokeniser, where="data.more"),
        lambda: check_rows(tmp_path, "train", tokeniser, readable=VOCABULARY, where="data.more"),
    ):
        with pytest.raises(ModelUnsupported, match=expected) as caught:
            refuse()
        assert caught.value.where == "data.more"
        assert caught.value.remedy
    check_rows(tmp_path, "train", tokeniser, readable=VOCABULARY + 1, where="data.more")
    found, _, _ = encode(tmp_path, tokeniser, readable=VOCABULARY + 1)
    assert max(found[-1]["input_ids"]) == VOCABULARY


def test_a_token_that_no_row_has_needs_no_embedding(tmp_path):
    write_rows(tmp_path, "train", [question(number) for number in range(9)])
    tokeniser = RowTokeniser(longer_tokenizer(), max_length=24, train_on_prompt=True)
    check_rows(tmp_path, "train", tokeniser, readable=VOCABULARY, where="task")
    assert len(encode(tmp_path, tokeniser)[0]) == 9


def test_classes_are_integers(tmp_path):
    write_rows(tmp_path, "train", [question(number) for number in range(9)])
    found, _, _ = encode(tmp_path, ClassifiedRows(tiny_tokenizer(), max_length=12))
    assert found["labels"][:] == found["gold"][:] == [number % 2 for number in range(9)]
    assert max(found["length"][:]) == 12


def test_rows_of_a_classifier_that_are_cut_are_counted_and_keep_how_a_text_ends(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {EOS}", special_tokens=[(EOS, tokenizer.eos_token_id)]
    )
    rows = [question(number, words=9) for number in range(COUNT)]
    write_rows(tmp_path, "train", rows)
    whole = tokenizer([row.prompt for row in rows])["input_ids"]
    most = sorted(map(len, whole))[COUNT // 2]
    long = [number for number, ids in enumerate(whole, start=1) if len(ids) > most]
    found, account, total = encode(tmp_path, ClassifiedRows(tokenizer, max_length=most))
    assert 3 < len(long) < COUNT
    assert account.counts == {"cut_prompt": len(long)}
    named = ", ".join(map(str, long[:3]))
    assert account.sentence(total) == (f"of {COUNT} rows {len(long)} cut at their end ({named}, ...)")
    end = [tokenizer.eos_token_id]
    assert found["input_ids"][:] == [ids if len(ids) <= most else ids[: most - 1] + end for ids in whole]


def test_tokens_are_never_whole_in_memory(tmp_path):
    """Rows of 8.6 kB in lists would be 170 MB."""
    write_rows(tmp_path, "train", (question(number, words=100) for number in range(20_000)))
    tokeniser = RowTokeniser(tiny_tokenizer(), max_length=512, train_on_prompt=True)
    tokeniser([question(1)])
    gc.collect()
    with PeakOfPrivateMemory() as memory:
        found, _, _ = encode(tmp_path, tokeniser)
        assert sum(len(found[place]["input_ids"]) for place in range(0, 20_000, 10)) > 200_000
    assert len(found) == 20_000
    assert memory.growth_bytes < 90e6
