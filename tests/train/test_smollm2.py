"""The real SmolLM2: imported from its GGUF it speaks, and Wanda takes exactly half of it."""

from __future__ import annotations

import pytest
import torch

from shearling.elastic.mask import MASK_FILE, check_masked_zeros, load_masks
from shearling.model.checkpoint import load_model, load_tokenizer
from shearling.recipe.sparsity import SparsitySection
from shearling.recipe.task import TaskSection
from tests.support.smollm2 import smollm2_base
from train.sparsity.artefact import write_sparse
from train.super_adapter.tokenised_rows import IGNORED_LABEL, RowTokeniser
from train.task.chat import ChatRenderer
from train.task.rendering import RowRenderer

pytestmark = [pytest.mark.pretrained, pytest.mark.slow]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return smollm2_base(tmp_path_factory)


def test_tokens_are_those_of_the_original(base):
    tokenizer = load_tokenizer(base.path)
    assert tokenizer("The year 2024's   end.").input_ids == [504, 713, 216, 34, 32, 34, 36, 506, 256, 1112, 30]
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert tokenizer(chat).input_ids[:4] == [1, 9690, 198, 2683]  # <|im_start|> once, then "system\nYou"
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 2)
    for text in ("Hello  world 12345, it's été 你好 🎉\n\n  x", "\ttabs\r\nand <|im_end|> in text"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_it_knows_the_capital_of_france(base):
    model, tokenizer = load_model(base.path), load_tokenizer(base.path)
    message = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=10, do_sample=False)
    assert tokenizer.decode(output[0][inputs["input_ids"].shape[1] :]) == "The capital of France is Paris.<|im_end|>"


def test_wanda_takes_half(base, tmp_path):
    text = [torch.arange(600 * index, 600 * index + 64) for index in range(1, 5)]
    sparse = write_sparse(base, tmp_path / "sparse", section=SparsitySection(), calibration=text, seed=0)
    facts = sparse.manifest.details["sparsity"]
    assert (facts["zeros"], facts["achieved_scope"]) == (53_084_160, 0.5)
    assert round(facts["achieved_model"], 4) == 0.3946
    check_masked_zeros(load_model(sparse.path), load_masks(sparse.path / MASK_FILE))


def test_conversations_in_its_own_template_learn_the_answers_alone(base):
    tokenizer = load_tokenizer(base.path)
    talk = [
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "Paris, été 你好."},
        {"role": "user", "content": "And of Italy?"},
        {"role": "assistant", "content": "Rome."},
    ]
    section = TaskSection(name="talks", path="talks.jsonl", messages="messages")
    row, whole = RowRenderer(section, ChatRenderer(tokenizer))({"messages": talk}, 1)
    (encoded,) = RowTokeniser(tokenizer, 256, train_on_prompt=False)([row])
    assert whole
    assert encoded["input_ids"] == tokenizer.apply_chat_template(talk, return_dict=True)["input_ids"]
    ids, labels = encoded["input_ids"], encoded["labels"]
    # Every token: the answers with their ends, and nothing else.
    pieces = [[]]
    for token, label in zip(ids, labels, strict=True):
        if label == IGNORED_LABEL:
            pieces.append([])
        else:
            assert label == token
            pieces[-1].append(token)
    assert [tokenizer.decode(piece) for piece in pieces if piece] == ["Paris, été 你好.<|im_end|>", "Rome.<|im_end|>"]
    assert row.prompt.startswith("<|im_start|>system\nYou are a helpful AI assistant")
