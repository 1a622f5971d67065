"""States of a decoder's cache that are saved, set again and edited: whoever reads on meets their numbers alone."""

from __future__ import annotations

import numpy as np
import openvino as ov
import pytest

from tests.support.decoder_layer import HIDDEN, Heads, Layer


def test_what_a_saved_state_says_is_not_believed_of_other_memory():
    """A state is set back after the sequence took another turn: the step behind it must not meet what came then."""
    layer = Layer(Heads(4, 2, 16))
    rng = np.random.default_rng(0)
    fixed = [rng.standard_normal((1, 1, width)).astype(np.float32) for width in layer.heads.widths]
    ones, residual = np.ones((1, 1, 16), np.float32), np.zeros((1, 1, HIDDEN), np.float32)

    def step(past: int, qkv) -> np.ndarray:
        return layer.infer(qkv, residual, ones, 0 * ones, np.ones((1, past + 1), np.int64), [0])[0]

    def anything() -> list[np.ndarray]:
        return [rng.standard_normal(part.shape).astype(np.float32) for part in fixed]

    for past in range(8):
        step(past, anything())
    (state,) = layer.request.query_state()
    saved = np.array(state.state.data)
    answers = []
    for detour in (0, 1, 2, 3):
        state.state = ov.Tensor(saved.copy())
        for past in range(8, 8 + detour):
            step(past, anything())
        state.state = ov.Tensor(saved.copy())
        answers.append([step(8, fixed), step(9, fixed), step(10, fixed)])
    for answer in answers[1:]:
        assert np.array_equal(answer, answers[0])


class Session:
    """A layer that reads numbers, at positions that count on: what it says depends on all that its state holds."""

    def __init__(self, batch: int = 1) -> None:
        self.layer, self.batch = Layer(Heads(4, 2, 16)), batch
        (self.state,) = self.layer.request.query_state()

    def read(self, past: int, seed: int) -> np.ndarray:
        """One position of every sequence, the same for all."""
        rng = np.random.default_rng(seed)
        qkv = [rng.standard_normal((1, 1, width)).astype(np.float32) for width in self.layer.heads.widths]
        same = [np.repeat(part, self.batch, axis=0) for part in qkv]
        ones, residual = np.ones((self.batch, 1, 16), np.float32), np.zeros((self.batch, 1, HIDDEN), np.float32)
        mask = np.ones((self.batch, past + 1), np.int64)
        return self.layer.infer(same, residual, ones, 0 * ones, mask, range(self.batch))[0]

    def read_on(self, past: int, until: int, seed: int) -> list[np.ndarray]:
        return [self.read(place, 1000 * seed + place) for place in range(past, until)]


@pytest.mark.parametrize("length", [8, 16, 20, 21, 40])
def test_sessions_that_begin_alike_do_not_meet_each_other(length):
    """One is saved, another goes on from what both share, and the first is taken up again."""
    session = Session()
    session.read_on(0, 8, seed=1)
    shared = np.array(session.state.state.data)
    session.state.state = ov.Tensor(shared.copy())
    session.read_on(8, 8 + length, seed=2)
    saved = np.array(session.state.state.data)
    undisturbed = session.read_on(8 + length, 12 + length, seed=3)
    session.state.state = ov.Tensor(shared.copy())
    session.read_on(8, 8 + length, seed=4)
    session.state.state = ov.Tensor(saved.copy())
    for found, expected in zip(session.read_on(8 + length, 12 + length, seed=3), undisturbed, strict=True):
        assert np.array_equal(found, expected)


def test_a_sequence_that_was_copied_over_another_is_read_as_that_one():
    session = Session(batch=2)
    for past in range(40):
        rng = np.random.default_rng(past)
        qkv = [rng.standard_normal((2, 1, width)).astype(np.float32) for width in session.layer.heads.widths]
        ones, residual = np.ones((2, 1, 16), np.float32), np.zeros((2, 1, HIDDEN), np.float32)
        session.layer.infer(qkv, residual, ones, 0 * ones, np.ones((2, past + 1), np.int64), [0, 1])
    state = np.array(session.state.state.data)
    state[1] = state[0]
    session.state.state = ov.Tensor(state)
    for past in range(40, 44):
        first, second = session.read(past, seed=past)
        assert np.array_equal(first, second)
