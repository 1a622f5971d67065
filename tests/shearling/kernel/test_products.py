"""Products against float64, for every instruction set, value type, encoding and arrangement of the activations."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shearling.errors import ArtefactCorrupt, ShapeMismatch
from shearling.kernel import packed_format
from shearling.kernel.library import held_bytes, kernels_in_use, load_library, multiply, pack_matrix
from shearling.kernel.packed_format import Encoding, ValueType, read_header
from shearling.kernel.packed_scales import ScaleType
from tests.support.instruction_sets import KERNELS, available
from tests.support.matrices import dense, random_matrix

# Of the sum of magnitudes |x| |w|: rounding in f32; a 16-bit fixed point of the largest activation of a row; an 8-bit
# one of the largest in a group of 32, with the same limits for all (the largest is rarely more than four times the
# mean).
EXACT, FIXED16, GROUPED8 = 1e-6, 4 * 2**-16, 4 * 2**-8
FEW_ROWS = 2
"""So many are multiplied more exactly, unless their weights have four bits."""
TILED_ROWS = 8
"""From so many on, tile registers multiply integers with 16 bits of an activation."""
MANY_ROWS = 128
"""From so many on, they multiply grouped integers scaled, in bf16."""
ROWS = (1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 16, 17, 25, 33, 128)
MATRICES = [
    (rows, columns, group)
    for rows, columns in ((1, 1), (3, 5), (16, 4), (17, 31), (64, 576), (40, 130), (33, 2052))
    for group in (None, 128, 64, 32, 4)
    if group is None or columns >= group
]


@pytest.fixture(params=KERNELS)
def kernels(request):
    if not available(request.param):
        pytest.skip(f"this processor has no {request.param}")
    return request.param


def worst_error(matrix, packed, x, **options) -> float:
    """The largest error of a product, as a share of the sum of magnitudes it adds up; exactly zero sums must be
    zero."""
    weights = dense(matrix)
    y, magnitude = multiply(packed, x, **options), np.abs(x).astype(np.float64) @ np.abs(weights).T
    error = np.abs(y - x.astype(np.float64) @ weights.T)
    assert not error[magnitude == 0].any()
    return float((error / np.maximum(magnitude, 1e-30)).max())


@pytest.mark.parametrize("encoding", list(Encoding))
@pytest.mark.parametrize("value_type", list(ValueType))
def test_products_equal_float64(kernels, value_type, encoding):
    for seed, (rows, columns, group) in enumerate(MATRICES):
        if value_type is ValueType.BF16 and group is not None:
            continue
        matrix = random_matrix(value_type, rows, columns, group_size=group, seed=seed)
        packed = pack_matrix(matrix, encoding)
        for count in ROWS:
            x = np.random.default_rng(seed).standard_normal((count, columns)).astype(np.float32)
            assert worst_error(matrix, packed, x, kernels=kernels, exact=True) < EXACT, (rows, columns, group, count)
            whole = value_type is not ValueType.BF16
            pairs = kernels in {"avx512_bf16", "amx"} and count > FEW_ROWS
            rounds = (whole and kernels != "portable") or (not whole and pairs)
            tiled = kernels == "amx" and group in {None, 64, 128} and count >= TILED_ROWS
            scaled = kernels == "amx" and group is not None and count >= MANY_ROWS
            few = count <= FEW_ROWS and value_type is not ValueType.INT4
            bytes_of_avx2 = kernels == "avx2" and value_type is ValueType.INT8
            fine = few or (whole and (bytes_of_avx2 or tiled or group == 4) and not scaled)
            limit = EXACT if not rounds else FIXED16 if fine else GROUPED8
            # A product of few columns has little to average over: there a share of the magnitudes would be too strict.
            if columns >= 130 or not rounds:
                assert worst_error(matrix, packed, x, kernels=kernels) < limit, (rows, columns, group, count)


@pytest.mark.parametrize("encoding", list(Encoding))
@pytest.mark.parametrize(
    ("value_type", "group"),
    [(ValueType.BF16, None), (ValueType.INT8, None), (ValueType.INT8, 64), (ValueType.INT4, 32)],
)
def test_a_row_in_f32_does_not_depend_on_others(kernels, value_type, group, encoding):
    """To the bit: texts that are computed together say what each says alone."""
    packed = pack_matrix(random_matrix(value_type, 50, 262 if group is None else 256, group_size=group), encoding)
    x = np.random.default_rng(0).standard_normal((140, read_header(packed).columns)).astype(np.float32)
    alone = np.concatenate([multiply(packed, row[None], kernels=kernels, exact=True) for row in x])
    for count in (*ROWS, 65, 140):
        assert multiply(packed, x[-count:], kernels=kernels, exact=True).tobytes() == alone[-count:].tobytes(), count


@pytest.mark.parametrize("value_type", [ValueType.INT8, ValueType.INT4])
@pytest.mark.parametrize("keep", [1.0, 0.9])
def test_two_of_four_columns_give_the_same_product_however_they_are_held(kernels, value_type, keep):
    """To the bit, where two, one or none is left of four."""
    for seed, (rows, columns, group) in enumerate(
        [*MATRICES, (33, 96, None), (50, 96, 32), (20, 1120, 32), (7, 64, 16)]
    ):
        matrix = random_matrix(value_type, rows, columns, keep=keep, two_of_four=True, group_size=group, seed=seed)
        packed = pack_matrix(matrix)
        for count in ROWS:
            x = np.random.default_rng(seed).standard_normal((count, columns)).astype(np.float32)
            for exact in (True, False):
                one, other = (multiply(packed, x, kernels=kernels, exact=exact, held=held) for held in (False, True))
                assert one.tobytes() == other.tobytes(), (rows, columns, group, count, exact)


@pytest.mark.parametrize("kernels", ["avx2", "avx_vnni"], indirect=True)
@pytest.mark.parametrize("value_type", [ValueType.INT8, ValueType.INT4])
def test_avx2_holds_two_of_four_columns_in_pairs(kernels, value_type):
    """Each weight that may stay and each bit of a mask, and no offsets; unless a row has three, or int4 does not end
    with 32 columns, or far fewer are left.
    """
    rows, columns = 64, 576
    matrix = random_matrix(value_type, rows, columns, keep=0.9, two_of_four=True, group_size=64, seed=1)
    packed, scales = pack_matrix(matrix), rows * columns // 64 * 2
    weight_bits = 8 if value_type is ValueType.INT8 else 4
    assert held_bytes(packed, kernels=kernels) == rows * columns * (weight_bits // 2 + 1) // 8 + scales
    assert held_bytes(packed, kernels="portable") == packed.size
    three = replace(matrix, values=matrix.values.copy())
    three.values[40, 4:7] = 1
    narrow = random_matrix(value_type, rows, columns - 4, keep=0.9, two_of_four=True, seed=1)
    whole = random_matrix(value_type, rows, columns, seed=1)
    empty = random_matrix(value_type, rows, columns, keep=0.3, two_of_four=True, seed=1)
    for other, pairs in ((three, False), (whole, False), (empty, False), (narrow, value_type is ValueType.INT8)):
        packed = pack_matrix(other)
        assert (held_bytes(packed, kernels=kernels) != packed.size) == pairs


@pytest.mark.parametrize("encoding", list(Encoding))
@pytest.mark.parametrize("group", [4, 32, 64])
def test_scales_in_bytes_give_the_product_of_halves(kernels, encoding, group):
    """To the bit: a byte times its factor is that half. The halves are in the form of files of before."""
    matrix = random_matrix(ValueType.INT4, 50, 1000, group_size=group, seed=2)
    packed, halves = pack_matrix(matrix, encoding), packed_format._pack(matrix, encoding, ScaleType.F16)
    assert read_header(packed).scale_type is ScaleType.I8
    assert packed.size < halves.size
    for count in ROWS:
        x = np.random.default_rng(count).standard_normal((count, 1000)).astype(np.float32)
        for exact in (True, False):
            ours, theirs = (multiply(item, x, kernels=kernels, exact=exact) for item in (packed, halves))
            assert ours.tobytes() == theirs.tobytes(), (count, exact)


@pytest.mark.parametrize(
    ("value_type", "group"),
    [(ValueType.BF16, None), (ValueType.INT8, None), (ValueType.INT8, 128), (ValueType.INT4, 64), (ValueType.INT4, 12)],
)
def test_many_rows_equal_float64(kernels, value_type, group):
    """More rows and panels than are held at once, and activations beyond the second-level cache."""
    matrix = random_matrix(value_type, 290, 1100, group_size=group)
    packed, limit = (
        pack_matrix(matrix),
        FIXED16 if kernels == "amx" and value_type is ValueType.INT8 and group is None else GROUPED8,
    )
    for count in (65, 530):
        x = np.random.default_rng(count).standard_normal((count, 1100)).astype(np.float32)
        assert worst_error(matrix, packed, x, kernels=kernels) < limit


@pytest.mark.parametrize("value_type", [ValueType.INT8, ValueType.INT4])
def test_groups_that_are_longer_than_a_sum_holds(kernels, value_type):
    matrix = random_matrix(value_type, 16, 140_000, group_size=70_000)
    x = np.random.default_rng(0).standard_normal((2, 140_000)).astype(np.float32)
    for count in (1, 2):
        assert worst_error(matrix, pack_matrix(matrix), x[:count], kernels=kernels) < FIXED16


@pytest.mark.parametrize("columns", [576, 640, 704, 1280])
def test_sums_at_the_end_of_their_range(kernels, columns):
    """Weights and both bytes of activations as large as they get: of 640 columns a joined sum leaves 32 bits."""
    matrix = random_matrix(ValueType.INT8, 16, columns)
    matrix = replace(matrix, values=np.full_like(matrix.values, -128))
    # Of 32,512 steps 1.0 has the bytes 127 and 0, the other 127 and -128.
    for count in (1, 2, 9, 16, 70):
        x = np.full((count, columns), 1 - 128 / 32512, np.float32)
        x[:, 0] = 1
        assert worst_error(matrix, pack_matrix(matrix), x, kernels=kernels) < GROUPED8


@settings(max_examples=60)
@given(
    rows=st.integers(1, 70),
    columns=st.integers(1, 300),
    keep=st.sampled_from([0.0, 0.02, 0.3, 0.5, 0.9, 1.0]),
    value_type=st.sampled_from(list(ValueType)),
    count=st.integers(1, 20),
    seed=st.integers(0, 99),
)
def test_any_shape_equals_float64(rows, columns, keep, value_type, count, seed):
    matrix = random_matrix(value_type, rows, columns, keep=keep, seed=seed)
    x = np.random.default_rng(seed).standard_normal((count, columns)).astype(np.float32)
    assert worst_error(matrix, pack_matrix(matrix), x, exact=True) < EXACT
    y, expected = multiply(pack_matrix(matrix), x), x.astype(np.float64) @ dense(matrix).T
    coarse = count > FEW_ROWS or value_type is ValueType.INT4
    limit = 2**-7 if coarse else EXACT if value_type is ValueType.BF16 else 2**-15
    # The bound of rounding: half a step of the largest activation for every weight.
    steps = np.abs(x).max(axis=1, keepdims=True) * np.abs(dense(matrix)).sum(axis=1)
    assert (np.abs(y - expected) <= limit * steps + 1e-30).all()


@pytest.mark.parametrize("count", [1, 12])
def test_extreme_activations(count):
    matrix = random_matrix(ValueType.INT8, 48, 576)
    packed = pack_matrix(matrix)
    zeros = np.zeros((count, 576), np.float32)
    assert not multiply(packed, zeros).any()
    tiny, huge = np.full_like(zeros, 1e-42), np.full_like(zeros, 1e30)
    assert np.abs(multiply(packed, tiny)).max() < 1e-35
    assert np.allclose(multiply(packed, huge), huge.astype(np.float64) @ dense(matrix).T, rtol=1e-4, atol=1e27)
    for strange in (np.nan, np.inf):
        spoilt = zeros.copy()
        spoilt[0, 7] = strange
        y = multiply(packed, spoilt)
        # A row that keeps column 7 must not come out as a number.
        assert not np.isfinite(y[0][matrix.values[:, 7] != 0]).any()


def test_a_bias_is_added_and_wrong_shapes_are_refused():
    matrix = random_matrix(ValueType.INT4, 20, 64, group_size=32)
    packed, x, bias = pack_matrix(matrix), np.ones((2, 64), np.float32), np.arange(20, dtype=np.float32)
    assert np.allclose(multiply(packed, x, bias=bias), multiply(packed, x) + bias)
    with pytest.raises(ShapeMismatch):
        multiply(packed, x[:, :63])
    with pytest.raises(ShapeMismatch):
        multiply(packed, x, bias=bias[:19])
    with pytest.raises(ArtefactCorrupt, match="cannot run"):
        multiply(packed, x, kernels="sse9")


def test_kernels_that_are_not_there_are_asked_for_in_vain_and_aloud():
    best = kernels_in_use()
    program = "from shearling.kernel.library import kernels_in_use as name; print(name(), name())"
    for asked, used, said in (
        ("portable", "portable", ""),
        ("", best, ""),
        ("avx-512", best, f"SHEARLING_KERNEL=avx-512: no such kernels here; {best} compute\n"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "SHEARLING_KERNEL": asked},
            capture_output=True,
            text=True,
            check=True,
        )
        assert (done.stdout, done.stderr) == (f"{used} {used}\n", said)


def test_the_best_instruction_set_is_chosen():
    best = load_library().shearling_kernels().decode()
    assert best == next(name for name in KERNELS if available(name))
