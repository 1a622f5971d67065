"""States of a decoder's cache that are saved, set again and edited: whoever reads on meets their numbers alone."""

from __future__ import annotations

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from shearling.kernel.openvino_extension import node_factory
from tests.support.decoder_layer import HIDDEN, STEP, Heads, Layer, attributes, layer_weights


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

    def __init__(self, batch: int = 1, cache: str = "f16") -> None:
        self.layer, self.batch = Layer(Heads(4, 2, 16), cache=cache), batch
        (self.state,) = self.layer.request.query_state()

    def read(self, past: int, seed: int, rows: int = 1) -> np.ndarray:
        """Some positions of every sequence, the same for all."""
        rng = np.random.default_rng(seed)
        qkv = [rng.standard_normal((1, rows, width)).astype(np.float32) for width in self.layer.heads.widths]
        same = [np.repeat(part, self.batch, axis=0) for part in qkv]
        residual = np.zeros((self.batch, rows, HIDDEN), np.float32)
        ones = np.ones((self.batch, rows, 16), np.float32)
        mask = np.ones((self.batch, past + rows), np.int64)
        return self.layer.infer(same, residual, ones, 0 * ones, mask, range(self.batch))[0]

    def read_on(self, past: int, until: int, seed: int) -> list[np.ndarray]:
        return [self.read(place, 1000 * seed + place) for place in range(past, until)]

    def saved(self) -> np.ndarray:
        return np.array(self.state.state.data)

    def restore(self, saved: np.ndarray) -> None:
        self.state.state = ov.Tensor(np.ascontiguousarray(saved))

    def fresh_answer(self, past: int, seed: int, rows: int = 1) -> np.ndarray:
        """What `read` says of this state in memory that nothing was read in before."""
        other = Session(self.batch, self.layer.cache)
        other.restore(self.saved())
        return other.read(past, seed, rows)

    def copies_all(self, past: int, mark: int, rows: int = 1) -> bool:
        """Read on; whether the first key came out of what was read, or lay where it is written already.

        What is read has a mark in the place of a byte of it, which no header tells of.
        """
        changed = self.saved()
        changed[:, 0, FIRST_KEY, 0] = mark
        self.restore(changed)
        self.read(past, seed=past, rows=rows)
        return bool((self.saved()[:, 0, FIRST_KEY, 0] == mark).any())


FIRST_KEY = 2
"""The slot of the first bytes behind the header of a head, in half precision."""


@pytest.mark.parametrize("batch", [1, 3])
def test_a_wrong_guess_leaves_what_was_read_where_it_is(batch):
    session = Session(batch)
    session.read(0, seed=0, rows=300)
    assert session.copies_all(300, mark=1)  # there was one cache until now
    past = 301
    for mark, (rows, accepted) in enumerate(((1, 1), (4, 1), (1, 1), (5, 2), (5, 1), (3, 3), (1, 1)), start=2):
        assert not session.copies_all(past, mark, rows)
        past += accepted
    session.layer.request.reset_state()
    session.read(0, seed=1, rows=3)
    assert session.copies_all(3, mark=9)


def shortened(saved: np.ndarray, positions: int) -> np.ndarray:
    """As OpenVINO GenAI takes positions back: as many slots."""
    return saved[:, :, : saved.shape[2] - positions]


@pytest.mark.parametrize("seed", range(12))
def test_nobody_meets_what_was_read_before(seed):
    """Texts that are read on, taken back, saved and gone back to in any order say what fresh memory says."""
    rng = np.random.default_rng(seed)
    batch = int(rng.integers(1, 3))
    session = Session(batch, str(rng.choice(["f16", "i8", "f32"])))
    past = int(rng.integers(1, 60))
    session.read(0, seed=0, rows=past)
    kept = [(past, session.saved())]
    for number in range(1, 60):
        turn = rng.integers(10)
        back = int(rng.integers(0, min(past, 20)))
        if turn < 3:  # a mask leaves out what a guess got wrong
            past -= back
        elif turn == 3:
            past, saved = kept[rng.integers(len(kept))]
            session.restore(saved)
        elif turn == 4:
            past, saved = kept[rng.integers(len(kept))]
            past -= min(back, past - 1)
            session.restore(saved)
        elif turn == 5:
            session.restore(shortened(session.saved(), back))
            past -= back
        elif turn == 6:
            session.restore(np.repeat(session.saved()[-1:], batch, axis=0))
        rows = int(rng.choice([0, 1, 1, 1, 2, 5]))
        expected = session.fresh_answer(past, number, rows)
        assert np.array_equal(session.read(past, number, rows), expected)
        past += rows
        kept.append((past, session.saved()))


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


@pytest.mark.parametrize("batch", [1, 2])
def test_a_mask_that_tells_of_more_than_was_read_is_refused(batch):
    """The memory behind a text is that of an earlier one, where a state was reset."""
    session = Session(batch)
    session.read_on(0, 120, seed=1)
    session.layer.request.reset_state()
    session.read(0, 2, rows=5)
    with pytest.raises(RuntimeError, match="fewer positions than the mask tells of"):
        session.read(6, 3)
    session.layer.request.reset_state()
    session.read(0, 2, rows=5)
    session.read(5, 3)


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


class Node:
    """Layers in one node, called as a runtime calls it: with memory to read from and memory to write to."""

    def __init__(self, heads: Heads, layers: int, batch: int) -> None:
        self.heads, self.layers, self.batch, factory = heads, layers, batch, node_factory()
        self.weights = [layer_weights(heads, seed=10 * layer) for layer in range(layers)]
        qkv, residual = (op.parameter([-1, -1, width], np.float32) for width in (sum(heads.widths), HIDDEN))
        angles = [op.parameter([-1, -1, heads.size], np.float32) for _ in range(2)]
        mask, beam = op.parameter([-1, -1], np.int64), op.parameter([-1], np.int32)
        cache = op.parameter([-1, layers * 2 * heads.groups, -1, 2 * heads.size], np.uint8)
        ports = [*(item.output(0) for item in angles), mask.output(0), beam.output(0)]
        self.step = factory.create("SparseStep", ports, STEP)
        inputs = [qkv.output(0), residual.output(0), self.step.output(0), cache.output(0)]
        inputs += [op.constant(item).output(0) for item in self.weights]
        self.node = factory.create("SparseDecoder", inputs, {**attributes(heads), "layers": layers})

    def read(self, past: np.ndarray, memory: np.ndarray, start: int, rows: int, *, fails: bool = False) -> np.ndarray:
        """Read positions behind `start` of `past`; the cache with them, which lies in `memory`.

        Where it `fails`, that is behind the first layer.
        """
        rng = np.random.default_rng(start)
        shapes = [(self.batch, rows, width) for width in (sum(self.heads.widths), HIDDEN)]
        inputs = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
        ones = np.ones((1, rows, self.heads.size), np.float32)
        mask, beam = np.ones((self.batch, start + rows), np.int64), np.arange(self.batch, dtype=np.int32)
        step = [ov.Tensor(ov.Type.u8, ov.Shape([0]))]
        self.step.evaluate(step, [ov.Tensor(item) for item in (ones, 0 * ones, mask, beam)])
        weights = [item[:-64] if fails and place == 1 else item for place, item in enumerate(self.weights)]
        outputs = [ov.Tensor(ov.Type.f32, ov.Shape([0])), ov.Tensor(memory, shared_memory=True)]
        outputs.append(ov.Tensor(ov.Type.f32, ov.Shape([0])))
        tensors = [*map(ov.Tensor, inputs), *step, ov.Tensor(past, shared_memory=True), *map(ov.Tensor, weights)]
        self.node.evaluate(outputs, tensors)
        self.answer = outputs[0].data.copy()
        return outputs[1].data


def test_what_a_failed_step_left_is_not_believed_of_any_layer():
    """It was to be shorter, and so laid out in another way: its first layer reached into what was another one's, of
    which the header stood where it was.
    """
    node = Node(Heads(4, 2, 32), layers=3, batch=2)
    memories = [np.zeros(8 << 20, np.uint8) for _ in range(3)]
    past = node.read(np.zeros((2, 12, 0, 64), np.uint8), memories[0], 0, 190)
    for place, (start, rows) in enumerate(((190, 5), (195, 1)), start=1):
        past = node.read(past, memories[place % 2], start, rows)
    with pytest.raises(RuntimeError, match="not those that the node was validated with"):
        node.read(past, memories[1], 159, 1, fails=True)
    node.read(past, memories[1], 196, 1)
    found = node.answer
    node.read(past.copy(), memories[2], 196, 1)
    assert np.array_equal(found, node.answer)


def test_numbers_that_bf16_cannot_hold():
    """Ties go to the even one, what is beyond the largest becomes it, and what is no number the least."""
    layer, step = Layer(Heads(1, 1, 16), cache="bf16"), 2.0**-7
    largest = np.uint32(0x7F7F0000).view(np.float32)
    kept = {np.inf: largest, -np.inf: -largest, np.nan: -largest, 3.4e38: largest, -3.4e38: -largest, -0.0: -0.0}
    kept |= {1 + step / 2: 1.0, 1 + 1.5 * step: 1 + 2 * step, 1 + 0.51 * step: 1 + step}
    numbers = np.zeros((1, 1, 16), np.float32)
    numbers[0, 0, : len(kept)] = list(kept)
    ones, mask = np.ones((1, 1, 16), np.float32), np.ones((1, 1), np.int64)
    layer.infer([ones, ones, numbers], np.zeros((1, 1, HIDDEN), np.float32), ones, 0 * ones, mask, [0])
    (state,) = layer.request.query_state()
    behind_the_header = state.state.data[0, 1].reshape(-1)[64:]
    found = (behind_the_header.view(np.uint16)[: len(kept)].astype(np.uint32) << 16).view(np.float32)
    assert found.tobytes() == np.array(list(kept.values()), np.float32).tobytes()
