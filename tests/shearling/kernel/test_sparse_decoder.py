"""A decoder layer with its attention inside OpenVINO, against numpy: step after step through a cache in a variable, in
padded and reordered batches, in every instruction set; and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op
from openvino.op.util import Variable, VariableInfo

from shearling.kernel.openvino_core import openvino_core
from shearling.kernel.openvino_extension import node_factory
from shearling.kernel.packed_format import Encoding, bundle, pack
from tests.support.decoder_layer import EPSILON, HIDDEN, SLOTS, STEP, Heads, Layer, attributes, layer_weights
from tests.support.decoder_reference import Reference, play
from tests.support.instruction_sets import KERNELS

CASES = {
    "grouped": (Heads(6, 2, 16), {}),
    "one head": (Heads(1, 1, 80), {}),
    "many queries": (Heads(12, 1, 32), {}),
    "another order": (Heads(4, 2, 16), {"order": (2, 0, 1)}),
    # Many queries are multiplied in pairs of bf16 where a head has whole registers of them.
    "pairs": (Heads(6, 2, 64), {}),
    "pairs, registers left over": (Heads(3, 1, 96), {}),
    # Queries of a chunk are 91, of the last one some others.
    "pairs of an odd number of queries": (Heads(7, 1, 64), {}),
    # A window of less than a block of keys, of some blocks, and of more than there are positions.
    "a window of one": (Heads(4, 2, 16), {"window": 1}),
    "a small window": (Heads(4, 2, 16), {"window": 5}),
    "a window of blocks": (Heads(4, 2, 16), {"window": 48}),
    "a window across tiles": (Heads(6, 2, 64), {"window": 270}),
    "a window of pairs": (Heads(6, 2, 64), {"window": 33}),
    "a wide window": (Heads(4, 2, 16), {"window": 4000}),
    "other angles": (Heads(4, 2, 16), {"angles": 1, "sets": 3}),
    "no angles": (Heads(6, 2, 64), {"angles": -1}),
    "a part of a head is turned": (Heads(6, 2, 64), {"rotary": 16}),
    "nearly all of a head is turned": (Heads(4, 2, 16), {"rotary": 14}),
    "neighbours are turned": (Heads(6, 2, 64), {"interleaved": True}),
    "neighbours in a part of a head": (Heads(4, 2, 48), {"rotary": 24, "interleaved": True}),
    "a cache in bytes": (Heads(4, 2, 16), {"cache": "i8"}),
    "a cache in bytes, pairs": (Heads(6, 2, 64), {"cache": "i8", "window": 270}),
    "a cache in bytes, scales left over": (Heads(3, 1, 80), {"cache": "i8", "interleaved": True}),
    "a cache in f32": (Heads(6, 2, 64), {"cache": "f32"}),
    "a cache in bf16": (Heads(4, 2, 16), {"cache": "bf16"}),
    "a cache in bf16, pairs": (Heads(6, 2, 64), {"cache": "bf16", "window": 270}),
}


@pytest.mark.parametrize("case", CASES)
def test_steps_of_one_sequence(case):
    heads, options = CASES[case]
    # One token, several, past the end of a block of 16, past what a first cache has room for, and on again.
    play(Layer(heads, **options), [1, 1, 1, 5, 1, 9, 1, 170, 1, 1, 40, 1, 1, 3, 300, 1, 1])


def test_a_sequence_outgrows_memory_that_a_longer_one_left():
    layer = Layer(Heads(4, 2, 16))
    play(layer, [600, 1, 1])
    # The caches of these positions grow at the 193rd, in memory that is large enough already.
    play(layer, [185, *[1] * 20])


def test_fewer_sequences_go_on():
    layer, rng = Layer(Heads(4, 2, 16)), np.random.default_rng(0)
    whole = [rng.standard_normal((3, 5, width)).astype(np.float32) for width in layer.heads.widths]
    ones = np.ones((1, 5, 16), np.float32)

    def step(rows: slice, batch: int, positions: int) -> np.ndarray:
        qkv = [part[:batch, rows] for part in whole]
        count = qkv[0].shape[1]
        residual = np.zeros((batch, count, HIDDEN), np.float32)
        angles = ones[:, :count]
        return layer.infer(qkv, residual, angles, 0 * angles, np.ones((batch, positions), np.int64), range(batch))[0]

    step(slice(0, 3), 3, 3)
    found = [step(slice(3, 4), 2, 4), step(slice(4, 5), 2, 5)]
    layer.request.reset_state()
    step(slice(0, 3), 2, 3)
    assert np.array_equal(found, [step(slice(3, 4), 2, 4), step(slice(4, 5), 2, 5)])


@pytest.mark.parametrize("heads", [Heads(4, 2, 16), Heads(6, 2, 64)], ids=["f32", "pairs"])
@pytest.mark.parametrize("window", [0, 4, 17])
def test_a_padded_batch(window, heads):
    play(Layer(heads, window=window), [20, 1, 1, 5, 1, 300, 1], batch=3, padding=[7, 0, 19])


@pytest.mark.parametrize("cache", SLOTS)
def test_sequences_change_places(cache):
    play(Layer(Heads(4, 2, 16), cache=cache), [20, 1, 1, 1, 3, 1, 1], batch=3, reorder=True)


def test_a_row_that_sees_nothing_becomes_zero():
    layer = Layer(Heads(2, 1, 16))
    qkv = [np.ones((1, 2, width), np.float32) for width in layer.heads.widths]
    residual = np.zeros((1, 2, HIDDEN), np.float32)
    ones = np.ones((1, 2, 16), np.float32)
    y, _ = layer.infer(qkv, residual, ones, 0 * ones, np.array([[0, 0]]), [0])
    assert np.abs(y).max() == 0


@pytest.mark.parametrize("cache", SLOTS)
def test_a_state_that_was_cut_off_goes_on_from_there(cache):
    """As OpenVINO GenAI does it when a chat takes back what it said: as many slots as positions."""
    layer = Layer(Heads(4, 2, 16), cache=cache)
    reference, rng = Reference(layer), np.random.default_rng(0)

    def step(rows: int, past: int, *, keep: bool = True) -> None:
        qkv = [rng.standard_normal((1, rows, width)).astype(np.float32) for width in layer.heads.widths]
        residual = np.zeros((1, rows, HIDDEN), np.float32)
        angles = rng.uniform(-3, 3, (1, rows, 16))
        cosines, sines = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        mask = np.ones((1, past + rows), np.int64)
        attention = reference.step(qkv, cosines, sines, mask, [0])
        found = layer.infer(qkv, residual, cosines, sines, mask, [0])
        expected = layer.expected(attention, residual)
        assert np.abs(found[0] - expected[0]).max() <= 2e-2 * np.abs(expected[0]).max()

    past = 0
    for rows in (30, 1, 1, 1):
        step(rows, past)
        past += rows
    for cut in (5, 1, 20):
        (state,) = layer.request.query_state()
        slots = np.array(state.state.data)[:, :, : state.state.shape[2] - cut]
        state.state = ov.Tensor(np.ascontiguousarray(slots))
        past -= cut
        reference.keys, reference.values = reference.keys[:, :, :past], reference.values[:, :, :past]
        for rows in (1, 1, 4, 1, 1):
            step(rows, past)
            past += rows


@pytest.mark.parametrize("kernels", KERNELS)
def test_every_instruction_set(kernels):
    program = (
        "from shearling.kernel.library import load_library\n"
        "import ctypes, sys\n"
        "from tests.support.decoder_reference import play\n"
        "from tests.support.decoder_layer import Heads, Layer\n"
        "name = load_library().shearling_kernels\n"
        "name.restype = ctypes.c_char_p\n"
        f"sys.exit(77) if name().decode() != {kernels!r} else None\n"
        "play(Layer(Heads(6, 2, 48)), [1, 1, 5, 70, 1, 1, 250, 1, 1])\n"
        "play(Layer(Heads(6, 2, 64)), [1, 5, 71, 1, 253, 1])\n"
        "play(Layer(Heads(6, 2, 64), window=40), [1, 5, 71, 1, 253, 1])\n"
        "for cache in ('i8', 'f32', 'bf16'):\n"
        "    play(Layer(Heads(5, 1, 80), cache=cache), [1, 1, 5, 70, 1, 1, 250, 1, 1])\n"
        "    play(Layer(Heads(6, 2, 64), cache=cache), [1, 5, 71, 1, 253, 1])\n"
        "play(Layer(Heads(4, 2, 16)), [9, 1, 1], batch=2, padding=[3, 0])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "SHEARLING_KERNEL": kernels},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if done.returncode == 77:
        pytest.skip(f"this processor has no {kernels}")
    assert done.returncode == 0, done.stderr[-3000:]


class Chain:
    """Layers of one shape in nodes of so many."""

    def __init__(self, heads: Heads, nodes: tuple[int, ...], *, vectors: bool) -> None:
        factory = node_factory()
        widths, self.layers = sum(heads.widths), sum(nodes)
        qkv, residual = (op.parameter([-1, -1, width], np.float32) for width in (widths, HIDDEN))
        angles = [op.parameter([-1, -1, heads.size], np.float32) for _ in range(2)]
        mask, beam = op.parameter([-1, -1], np.int64), op.parameter([-1], np.int32)
        step = factory.create("SparseStep", [*(a.output(0) for a in angles), mask.output(0), beam.output(0)], STEP)
        rng, place, assigns, ends = np.random.default_rng(1), 0, [], [residual.output(0), None, qkv.output(0)]
        length = widths + 2 * heads.size
        added = 0.3 * rng.standard_normal((self.layers, length)).astype(np.float32)
        for count in nodes:
            info = VariableInfo()
            info.data_shape = ov.PartialShape([-1, count * 2 * heads.groups, -1, 2 * heads.size])
            info.data_type, info.variable_id = ov.Type.u8, f"cache{place}"
            cache, sizes = Variable(info), np.array([0, count * 2 * heads.groups, 0, 2 * heads.size])
            read = op.read_value(op.broadcast(np.uint8(0), sizes), cache)
            weights = [op.constant(layer_weights(heads, seed=10 * layer)) for layer in range(place, place + count)]
            inputs = [ends[2], ends[0], step.output(0), read.output(0), *(item.output(0) for item in weights)]
            if vectors:
                inputs.append(op.constant(added[place : place + count].reshape(-1)).output(0))
            changed = {"layers": count, "qkv_bias": vectors, "head_norm_epsilon": EPSILON if vectors else 0.0}
            node = factory.create("SparseDecoder", inputs, {**attributes(heads), **changed})
            assigns.append(op.assign(read, cache))
            assigns[-1].input(0).replace_source_output(node.output(1))
            ends, place = [node.output(port) for port in range(3)], place + count
        model = ov.Model(
            [op.result(ends[0]), op.result(ends[2])], assigns, [qkv, residual, *angles, mask, beam], "chain"
        )
        compiled = openvino_core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        self.request = compiled.create_infer_request()

    def infer(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        self.request.infer(dict(enumerate(inputs)))
        return [self.request.get_output_tensor(port).data.copy() for port in range(2)]


@pytest.mark.parametrize("vectors", [False, True])
@pytest.mark.parametrize("nodes", [(3,), (2, 1)])
def test_layers_in_one_node_are_layers_in_turn(nodes, vectors):
    heads, rng = Heads(4, 2, 16), np.random.default_rng(5)
    chains = [Chain(heads, one, vectors=vectors) for one in (nodes, (1, 1, 1))]
    for batch, reorder in ((1, False), (3, True)):
        for chain in chains:
            chain.request.reset_state()
        past = 0
        # Past what a first cache has room for.
        for number, rows in enumerate((20, 1, 1, 4, 170, 1, 1)):
            qkv = rng.standard_normal((batch, rows, sum(heads.widths))).astype(np.float32)
            residual = rng.standard_normal((batch, rows, HIDDEN)).astype(np.float32)
            angles = rng.uniform(-3, 3, (1, rows, heads.size))
            past += rows
            mask = np.ones((batch, past), np.int64)
            mask[-1, : 7 * (batch > 1)] = 0
            beam = rng.integers(0, batch, batch) if reorder and number else np.arange(batch)
            tables = [np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)]
            found, expected = (chain.infer([qkv, residual, *tables, mask, beam.astype(np.int32)]) for chain in chains)
            for one, other in zip(found, expected, strict=True):
                assert np.isfinite(other).all()
                assert np.array_equal(one, other)


def infer_once(layer: Layer, *, mask=None, beam=(0,), positions=3) -> None:
    rows = 3
    qkv = [np.ones((1, rows, width), np.float32) for width in layer.heads.widths]
    residual, ones = np.zeros((1, rows, HIDDEN), np.float32), np.ones((1, rows, layer.heads.size), np.float32)
    mask = np.ones((1, positions), np.int64) if mask is None else mask
    layer.infer(qkv, residual, ones, ones, mask, list(beam))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"positions": 9}, "fewer positions than the mask tells of"),
        ({"positions": 2}, "not one step"),
        ({"mask": np.ones((2, 3), np.int64), "beam": (0, 1)}, "the step is of other rows"),
        ({"mask": np.ones((1, 3), np.int64), "beam": (0, 1)}, "not one step"),
    ],
)
def test_steps_that_do_not_fit_are_refused(options, reason):
    with pytest.raises(RuntimeError, match=reason):
        infer_once(Layer(Heads(2, 1, 16)), **options)


def test_angles_that_a_step_does_not_have_are_refused():
    layer = Layer(Heads(2, 1, 16), angles=1)
    layer.angles = 0  # it is fed what there is
    with pytest.raises(RuntimeError, match="has 1 sets of angles"):
        infer_once(layer)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"layers": 0}, "0 layers of 64 columns"),
        ({"layers": 2}, "has 5 inputs, its attributes ask for 6"),
        ({"layers": 2, "rows": [32, 16]}, "2 layers of 64 columns leave 48 to the next"),
        ({"heads": 3}, "do not make"),
        ({"kv_heads": 0}, "do not make"),
        ({"head_size": 24}, "do not make"),
        ({"order": [0, 1]}, "order of queries"),
        ({"order": [0, 1, 1]}, "order of queries"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"rotary_size": 18}, "cannot be turned"),
        ({"rotary_size": 3}, "cannot be turned"),
        ({"cache": "i4"}, "a cache in i4"),
        ({"windows": [-1]}, "a window and angles"),
        ({"windows": [4, 4]}, "a window and angles"),
        ({"angles": [-2]}, "a window and angles"),
        ({"angles": [8]}, "a window and angles"),
        ({"format_version": 2}, "made by another version"),
    ],
)
def test_attributes_that_contradict_each_other_are_refused(changed, reason):
    layer = Layer(Heads(2, 1, 16))
    parameters = [
        op.parameter([-1, -1, 64], np.float32).output(0),
        op.parameter([-1, -1, HIDDEN], np.float32).output(0),
        op.parameter([-1, -1], np.uint8).output(0),
        op.parameter([-1, 2, -1, 32], np.uint8).output(0),
        op.constant(bundle([pack(m, Encoding.BITMASK) for m in layer.matrices], layer.gammas)).output(0),
    ]
    with pytest.raises(RuntimeError, match=reason):
        node_factory().create("SparseDecoder", parameters, {**attributes(layer.heads), **changed})
