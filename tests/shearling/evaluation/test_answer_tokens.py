"""Training learns exactly the tokens that evaluation scores, whatever the tokenizer does where the prompt ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.models.huggingface import HFLM

from shearling.evaluation.answer_tokens import split_answer
from shearling.evaluation.evaluator import torch_scorer
from shearling.evaluation.task import TaskRow
from shearling.model.text_encoder import TextEncoder
from tests.support.tiny_models import EOS, FAMILIES, end_appending_tokenizer, tiny_tokenizer
from train.super_adapter.tokenised_rows import IGNORED_LABEL, RowTokeniser

PAIRS = [
    ("Is this headline sarcastic? Answer:", " yes"),
    ("Is this headline sarcastic? Answer: ", "yes"),
    ("Is this headline sarcastic? Answer:\n\n", "yes, sure"),
    ("The quick brown fo", "x jumps"),
    ("The quick", "ly"),
]


def learnt(tokenizer, prompt, completion):
    row = TaskRow(id="0", prompt=prompt, choices=None, gold=None, completion=completion, text=prompt)
    (encoded,) = RowTokeniser(tokenizer, max_length=64, train_on_prompt=False, train_on_end=False)([row])
    return [label for label in encoded["labels"] if label != IGNORED_LABEL]


@pytest.mark.parametrize("make", [tiny_tokenizer, end_appending_tokenizer])
@pytest.mark.parametrize(("prompt", "completion"), PAIRS)
def test_training_learns_what_evaluation_scores(make, prompt, completion):
    tokenizer = make()
    context, continuation = torch_scorer(FAMILIES["llama"](), tokenizer)._encode_pair(prompt, completion)
    assert learnt(tokenizer, prompt, completion) == continuation
    assert tokenizer.decode(context + continuation) == prompt + completion
    # What is scored holds the whole answer, and of the prompt no more than white space and a merged token.
    assert tokenizer.decode(continuation).endswith(completion)


@pytest.mark.parametrize(("prompt", "completion"), PAIRS[:3])
def test_the_rule_is_the_harness_s_own_where_no_token_crosses(prompt, completion):
    model, tokenizer = FAMILIES["llama"](), tiny_tokenizer()
    stock = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)._encode_pair(prompt, completion)
    assert torch_scorer(model, tokenizer)._encode_pair(prompt, completion) == stock


@given(prompt=st.text(min_size=1, max_size=12), completion=st.text(min_size=1, max_size=8))
def test_the_parts_are_the_whole_and_no_part_of_the_answer_is_lost(prompt, completion):
    encode = TextEncoder(tiny_tokenizer())
    context, answer = split_answer(encode, prompt, completion)
    assert context + answer == encode(prompt + completion)
    assert context == encode(prompt.rstrip())[: len(context)]
    assert answer or encode(prompt + completion) == encode(prompt.rstrip())


def test_a_text_is_not_ended_twice():
    plain, ended = TextEncoder(tiny_tokenizer()), TextEncoder(end_appending_tokenizer())
    for text in ("a", "The quick", f"a{EOS}"):
        assert ended(text) == plain(text)
