"""Guesses may change how often a model is read, never what it says."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from serve.runtimes.runtime import Decoding
from serve.runtimes.speculation.decoding import decode_with_guesses, speculate
from serve.runtimes.speculation.guesses import LONGEST, DraftModel, GuessCount, PromptLookup

TOKENS = st.lists(st.integers(0, 3), min_size=1, max_size=20)


class HashingModel:
    """Says something that depends on all that goes before; repeats itself after a while. Counts its readings."""

    def __init__(self, seed: int = 0, period: int = 5) -> None:
        self.readings = 0
        self._seed, self._period = seed, period
        self._text: list[int] = []

    def after(self, text: Sequence[int]) -> int:
        return hash((self._seed, len(text) % self._period, tuple(text[-2:]))) % 4

    def read(self, tokens: Sequence[int], seen: int, *, behind: int) -> Sequence[int]:
        assert tokens
        assert 0 <= seen <= len(self._text)
        assert 1 <= behind <= len(tokens)
        self.readings += 1
        self._text = [*self._text[:seen], *tokens]
        return [self.after(self._text[: len(self._text) - place]) for place in reversed(range(behind))]

    def alone(self, prompt: Sequence[int], new_tokens: int) -> list[int]:
        text = list(prompt)
        for _ in range(new_tokens):
            text.append(self.after(text))
        return text[len(prompt) :]


class Oracle:
    """Knows what comes, and is wrong at every so many places."""

    def __init__(self, truth: Sequence[int], wrong_every: int) -> None:
        self._truth, self._wrong_every = truth, wrong_every

    def guess(self, text: Sequence[int], most: int) -> Sequence[int]:
        return [
            token + (place % self._wrong_every == 0) for place, token in enumerate(self._truth) if place >= len(text)
        ][:most]


class Letters:
    """A token is a letter."""

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join("abcdefg"[token] for token in token_ids)


@given(TOKENS, st.integers(0, 9), st.integers(1, 7), st.integers(1, 40), st.integers(1, 9), st.booleans())
def test_the_text_is_the_models_own(prompt, seed, period, new_tokens, most, drafted):
    model = HashingModel(seed, period)
    guesser = DraftModel(HashingModel(seed % 2, period)) if drafted else PromptLookup()
    made = list(speculate(model, prompt, guesser, most=most, new_tokens=new_tokens))
    assert list(itertools.chain.from_iterable(made)) == model.alone(prompt, new_tokens)
    assert len(made) == model.readings
    assert len(made[0]) == 1


def test_right_guesses_save_readings_and_wrong_ones_cost_few():
    model, prompt = HashingModel(), [1, 2]
    truth = [*prompt, *model.alone(prompt, 101)]
    list(speculate(model, prompt, Oracle(truth, wrong_every=1000), most=4, new_tokens=101))
    assert model.readings == 1 + 100 / 5
    model.readings = 0
    list(speculate(model, prompt, Oracle(truth, wrong_every=1), most=4, new_tokens=101))
    assert model.readings == 101


def test_a_draft_is_asked_for_no_token_twice():
    model, small = HashingModel(), HashingModel()
    made = list(speculate(model, [1, 2], DraftModel(small), most=4, new_tokens=41))
    assert model.readings == 1 + 40 / 5
    assert list(itertools.chain.from_iterable(made)) == model.alone([1, 2], 41)
    # Four guesses for each reading but the first, and nothing read again.
    assert small.readings == 4 * (model.readings - 1)


@given(TOKENS, st.integers(1, 8))
def test_what_followed_the_latest_longest_match_is_guessed(text, most):
    places = [
        (length, end)
        for length in range(1, LONGEST + 1)
        for end in range(length, len(text))
        if text[end - length : end] == text[len(text) - length :]
    ]
    expected = []
    if places:
        _, start = max(places)
        endless = [*text, *text[start:] * most]
        expected = endless[start : start + most]
    assert list(PromptLookup().guess(text, most)) == expected


@given(TOKENS, TOKENS)
def test_a_text_that_grew_is_looked_up_as_a_whole(text, more):
    grown = PromptLookup()
    grown.guess(text, 3)
    assert grown.guess([*text, *more], 3) == PromptLookup().guess([*text, *more], 3)


def test_as_many_guesses_as_were_right():
    count = GuessCount(8)
    for guessed, agreed, expected in ((8, 3, 3), (3, 3, 6), (6, 6, 8), (8, 0, 1), (0, 0, 1), (1, 1, 2)):
        count.learn(guessed, agreed)
        assert count.next == expected


@given(TOKENS, st.integers(1, 30), st.integers(0, 3))
def test_a_generation_ends_where_the_model_says(prompt, new_tokens, end):
    model, pieces = HashingModel(), []
    work = Decoding(new_tokens, frozenset({end}), pieces.append)
    generation = decode_with_guesses(model, prompt, PromptLookup(), most=4, work=work, decoder=Letters())
    alone = model.alone(prompt, new_tokens)
    expected = alone[: alone.index(end)] if end in alone else alone
    assert list(generation.token_ids) == expected
    assert "".join(pieces) == Letters().decode(expected)
    assert len(generation.gaps_s) == len(expected) - 1 + (end in alone)
    assert min((generation.ttft_s, *generation.gaps_s)) >= 0
    assert generation.ttft_s + sum(generation.gaps_s) <= generation.total_s + 1e-9
