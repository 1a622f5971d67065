"""The packed form: reversible bit for bit, the same from numpy and from C++, and refused where it lies."""

from __future__ import annotations

import struct
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shearling.errors import ArtefactCorrupt, ModelUnsupported, NonFiniteWeights, ShapeMismatch
from shearling.kernel.library import expand_matrix, pack_matrix, unpack_matrix, validate
from shearling.kernel.packed_format import (
    HEADER_BYTES,
    MAX_SIZE,
    Encoding,
    Header,
    Matrix,
    ValueType,
    pack,
    packed_bytes,
    read_header,
    unpack,
)
from shearling.kernel.packed_scales import ScaleType
from tests.support.matrices import random_matrix

SHAPES = [(1, 1), (16, 4), (17, 5), (33, 130), (64, 96), (300, 40)]


def equal(a: Matrix, b: Matrix) -> bool:
    same_scales = (a.scales is None and b.scales is None) or (
        a.scales.dtype == b.scales.dtype and a.scales.tobytes() == b.scales.tobytes()
    )
    return (
        same_scales
        and a.value_type == b.value_type
        and a.group_size == b.group_size
        and a.values.tobytes() == b.values.tobytes()
    )


@pytest.mark.parametrize("encoding", list(Encoding))
@pytest.mark.parametrize("value_type", list(ValueType))
def test_packing_is_reversible_and_the_same_in_both_languages(value_type, encoding):
    for seed, (rows, columns) in enumerate(SHAPES):
        for keep in (0.0, 0.4, 1.0):
            group = None if value_type is ValueType.BF16 or columns < 64 else 4
            matrix = random_matrix(value_type, rows, columns, keep=keep, group_size=group, seed=seed)
            packed = pack(matrix, encoding)
            assert packed.tobytes() == pack_matrix(matrix, encoding).tobytes()
            assert equal(unpack(packed), matrix)
            assert equal(unpack_matrix(packed), matrix)
            assert expand_matrix(packed).tobytes() == pack(matrix, Encoding.DENSE).tobytes()
            validate(packed)


def test_packing_by_numpy_takes_a_few_bytes_a_weight():
    """Four bits once took 27."""
    matrix = random_matrix(ValueType.INT4, 1024, 1024, keep=0.5, group_size=64, seed=0)
    tracemalloc.start()
    try:
        pack(matrix)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 10 * matrix.values.size


def test_a_negative_zero_survives():
    matrix = Matrix(np.array([[0x8000, 0, 0x3F80]], np.uint16), ValueType.BF16)
    assert unpack(pack_matrix(matrix)).values.tobytes() == matrix.values.tobytes()


def in_bytes(rows: int = 17, columns: int = 43) -> Matrix:
    matrix = random_matrix(ValueType.INT4, rows, columns, group_size=4, seed=2)
    assert read_header(pack(matrix)).scale_type is ScaleType.I8
    return matrix


@pytest.mark.parametrize(
    ("change", "scale_type"),
    [
        (lambda scales: scales, ScaleType.I8),
        (lambda scales: scales[:, :4], ScaleType.F16),
        (lambda scales: scales.astype(np.float32), ScaleType.F32),
        (lambda scales: np.where(np.arange(len(scales))[:, None] == 5, np.float16(-0.0), scales), ScaleType.F16),
        (lambda scales: scales + (np.arange(scales.shape[1]) == 7) * np.float16(2), ScaleType.F16),
    ],
    ids=["multiples", "so few that factors are more", "float32", "a negative zero", "one far off"],
)
def test_scales_are_bytes_where_that_is_smaller_and_loses_nothing(change, scale_type):
    matrix = in_bytes()
    scales = change(matrix.scales)
    values = np.ascontiguousarray(matrix.values[:, : 4 * scales.shape[1]])
    changed = Matrix(values, ValueType.INT4, np.ascontiguousarray(scales), 4)
    packed = pack_matrix(changed)
    assert read_header(packed).scale_type is scale_type
    assert packed.tobytes() == pack(changed).tobytes()
    assert equal(unpack(packed), changed)
    assert equal(unpack_matrix(packed), changed)


def test_a_file_of_before_keeps_halves_that_bytes_could_be():
    matrix = in_bytes()
    halves = pack(Matrix(matrix.values, ValueType.INT4, matrix.scales + np.float16(2e-3), 4)).copy()
    header = read_header(halves)
    assert header.scale_type is ScaleType.F16
    start, size = header.sections[0], header.section_bytes[0]
    ones = np.pad(np.ones((17, 11), np.float16), ((0, 15), (0, 0)))
    halves[start : start + size] = ones.reshape(2, 16, 11).transpose(0, 2, 1).reshape(-1).view(np.uint8)
    validate(halves)
    assert (unpack(halves).scales == 1).all()


def lies_about_scales(packed: np.ndarray) -> dict[str, np.ndarray]:
    """Corrupt copies of a packed matrix whose scales are bytes, by what they do."""
    start = read_header(packed).sections[0]

    def changed(row: int, factor: float, whole: np.ndarray) -> np.ndarray:
        copy = packed.copy()
        copy[start + 4 * row : start + 4 * row + 4] = np.array([factor], np.float32).view(np.uint8)
        copy[start + 64 + row : start + 64 + 16 * 11 : 16] = whole.astype(np.int8).view(np.uint8)
        return copy

    some = np.arange(-5, 6)
    none = np.zeros(11)
    return {
        "factor of the same scales that is not the largest": changed(0, 2.0**-12, 2 * some),
        "negative factor": changed(0, -(2.0**-12), some),
        "NaN factor": changed(0, float("nan"), some),
        "infinite factor": changed(0, float("inf"), some),
        "NaN factor of nothing": changed(0, float("nan"), none),
        "factor of nothing": changed(0, 2.0**-12, none),
        "negative zero of nothing": changed(0, -0.0, none),
        "no factor": changed(0, 0.0, some),
        "factor that is no half": changed(0, 2.0**-12 + 2.0**-30, some),
        "product that is no half": changed(0, 2047 * 2.0**-20, some),
        "product beyond halves": changed(0, 60000.0, some),
        "the least byte": changed(0, 2.0**-12, np.where(some == 1, -128, some)),
    }


@pytest.mark.parametrize("lie", sorted(lies_about_scales(pack(in_bytes()))))
def test_scales_in_bytes_that_lie_are_refused_by_both_readers(lie):
    corrupt = lies_about_scales(pack(in_bytes()))[lie]
    with pytest.raises(ArtefactCorrupt):
        unpack(corrupt)
    with pytest.raises(ArtefactCorrupt):
        validate(corrupt)


def test_half_the_weights_take_the_bytes_that_the_format_promises():
    for value_type, bits in ((ValueType.BF16, 18), (ValueType.INT8, 10), (ValueType.INT4, 6)):
        matrix = random_matrix(value_type, 256, 1024, keep=0.5)
        packed = pack_matrix(matrix)
        header = read_header(packed)
        assert packed.size == pytest.approx(256 * 1024 * bits / 16, rel=0.03)
        estimate = packed_bytes(256, 1024, header.stored, value_type, scale_bytes=header.section_bytes[0])
        assert estimate == pytest.approx(packed.size, rel=0.03)


@pytest.mark.parametrize(
    ("matrix", "error"),
    [
        (Matrix(np.array([[0x7FC0]], np.uint16), ValueType.BF16), NonFiniteWeights),
        (Matrix(np.ones((1, 4), np.int8), ValueType.INT8, np.array([[np.nan]], np.float32), 4), NonFiniteWeights),
        (Matrix(np.full((1, 4), 8, np.int8), ValueType.INT4, np.ones((1, 1), np.float32), 4), ModelUnsupported),
        (Matrix(np.ones((1, 4), np.int8), ValueType.INT8, np.ones((2, 1), np.float32), 4), ShapeMismatch),
        (Matrix(np.ones((1, 8), np.int8), ValueType.INT8, np.ones((1, 2), np.float32), 6), ShapeMismatch),
        (Matrix(np.ones((1, 4), np.int8), ValueType.INT8), ShapeMismatch),
        (Matrix(np.ones((1, 4), np.float32), ValueType.INT8, np.ones((1, 1), np.float32), 4), ShapeMismatch),
        (Matrix(np.full((1, 4), 257), ValueType.INT8, np.ones((1, 1), np.float32), 4), ShapeMismatch),
        (Matrix(np.ones(4, np.int8), ValueType.INT8, np.ones((1, 1), np.float32), 4), ShapeMismatch),
        (Matrix(np.ones((1, 4), np.int8), ValueType.INT8, np.ones((1, 1)), 4), ShapeMismatch),
        (Matrix(np.ones((1, 4), np.uint16), ValueType.BF16, np.ones((1, 1), np.float32), 4), ShapeMismatch),
    ],
)
def test_what_cannot_be_packed_is_refused(matrix, error):
    with pytest.raises(error):
        pack(matrix)
    with pytest.raises(error if error is ShapeMismatch else ModelUnsupported):
        pack_matrix(matrix)


def lies(packed: np.ndarray) -> dict[str, np.ndarray]:
    """Corrupt copies of a packed int8 matrix whose last panel and block are ragged, by what they do."""
    scales_at, offsets_at, masks_at, values_at = read_header(packed).sections

    def changed(at: int, content: bytes) -> np.ndarray:
        copy = packed.copy()
        copy[at : at + len(content)] = np.frombuffer(content, np.uint8)
        return copy

    first_mask = packed[masks_at : masks_at + 8].view("<u8")[0]
    return {
        "truncated": packed[:-64],
        "empty": packed[:0],
        "longer": np.concatenate([packed, np.zeros(64, np.uint8)]),
        "magic": changed(0, b"X"),
        "version": changed(8, struct.pack("<I", 2)),
        "value type": changed(12, struct.pack("<I", 9)),
        "encoding": changed(16, struct.pack("<I", 2)),
        "rows overflow": changed(24, struct.pack("<Q", 2**64 - 1)),
        "columns overflow": changed(32, struct.pack("<Q", 2**63)),
        "group": changed(40, struct.pack("<Q", 0)),
        "stored": changed(48, struct.pack("<Q", 1)),
        "total": changed(56, struct.pack("<Q", 2**64 - 64)),
        "section": changed(88, struct.pack("<Q", 2**64 - 64)),
        "NaN scale": changed(scales_at, struct.pack("<f", float("nan"))),
        "panel offset": changed(offsets_at + 8, struct.pack("<Q", 2**40)),
        "one bit more": changed(masks_at, struct.pack("<Q", int(first_mask) ^ 1)),
        "all bits": changed(masks_at, struct.pack("<Q", 2**64 - 1)),
        "a kept zero": changed(values_at, b"\0"),
        "padding kept": changed(offsets_at - 1, b"\1"),
        "tail": changed(packed.size - 1, b"\1"),
    }


@pytest.mark.parametrize("lie", sorted(lies(pack(random_matrix(ValueType.INT8, 17, 131)))))
def test_a_lying_matrix_is_refused_by_both_readers(lie):
    corrupt = lies(pack(random_matrix(ValueType.INT8, 17, 131)))[lie]
    with pytest.raises(ArtefactCorrupt):
        unpack(corrupt)
    with pytest.raises(ArtefactCorrupt):
        validate(corrupt)


@pytest.mark.parametrize("value_type", list(ValueType))
@pytest.mark.parametrize("columns", [43, 64])  # of int4 the last block is alone, or one of two
def test_a_dense_matrix_of_too_few_values_is_refused_by_its_header(value_type, columns):
    packed = pack(random_matrix(value_type, 19, columns), Encoding.DENSE)
    header = read_header(packed)
    shorter = replace(header, value_bytes=header.value_bytes - 64)
    cut = packed[: shorter.total_bytes].copy()
    cut[:HEADER_BYTES] = np.frombuffer(shorter.to_bytes(), np.uint8)
    with pytest.raises(ArtefactCorrupt, match=f"are too few for 19 x {columns}"):
        read_header(cut)


@pytest.mark.parametrize("reader", [unpack, unpack_matrix, expand_matrix, validate])
def test_a_header_alone_claims_no_memory(reader):
    header = Header(ValueType.BF16, Encoding.DENSE, ScaleType.NONE, MAX_SIZE, MAX_SIZE, 0, MAX_SIZE**2, 0)
    claiming = np.frombuffer(header.to_bytes() + bytes(64), np.uint8)
    with pytest.raises(ArtefactCorrupt):
        reader(claiming)


@settings(max_examples=300)
@given(
    value_type=st.sampled_from(list(ValueType)),
    encoding=st.sampled_from(list(Encoding)),
    position=st.floats(0, 1, exclude_max=True),
    byte=st.integers(0, 255),
    length=st.integers(1, 8),
    seed=st.sampled_from([0, 2]),
)
def test_both_readers_agree_about_any_damage(value_type, encoding, position, byte, length, seed):
    packed = pack(random_matrix(value_type, 19, 43, group_size=None if value_type is ValueType.BF16 else 4, seed=seed))
    start = int(position * packed.size)
    packed[start : start + length] = byte
    verdicts = []
    for reader in (unpack, validate):
        try:
            reader(packed)
            verdicts.append(True)
        except ArtefactCorrupt:
            verdicts.append(False)
    assert verdicts[0] == verdicts[1]
