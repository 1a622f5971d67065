"""Random matrices to pack, and what they mean in float64."""

from __future__ import annotations

import numpy as np

from shearling.kernel.packed_format import Matrix, ValueType


def random_matrix(
    value_type: ValueType,
    rows: int,
    columns: int,
    *,
    keep: float = 0.5,
    two_of_four: bool = False,
    group_size: int | None = None,
    seed: int = 0,
) -> Matrix:
    """A matrix with a share of `keep` nonzeros, and with an empty and a full row where there is room; or of these no
    more than two in four columns. By the seed its scales are any of float32 or float16, or float16 that are stored as
    bytes where there are groups enough.
    """
    generator = np.random.default_rng(seed)
    kept = generator.random((rows, columns)) < keep
    if two_of_four:
        kept &= two_of_four_columns(generator, rows, columns)
    if rows > 2:
        kept[1], kept[2] = False, kept[2] if two_of_four else True
    if value_type is ValueType.BF16:
        values = generator.standard_normal((rows, columns)).astype(np.float32).view(np.uint32) >> 16
        return Matrix((values * kept).astype(np.uint16), value_type)
    low, high = (-8, 8) if value_type is ValueType.INT4 else (-128, 128)
    group_size = group_size or columns
    values = (generator.integers(low, high, (rows, columns)) * kept).astype(np.int8)
    scales = generator.normal(0, 0.01, (rows, -(-columns // group_size)))
    if seed % 3 == 2:
        return Matrix(values, value_type, multiples(scales, generator), group_size)
    return Matrix(values, value_type, scales.astype(np.float16 if seed % 3 else np.float32), group_size)


def two_of_four_columns(generator: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """[rows, columns] bool: two of every four columns of a row, the last of which may lie beyond it."""
    order = np.argsort(generator.random((rows, -(-columns // 4), 4)), axis=2)
    return (order < 2).reshape(rows, -1)[:, :columns]


def multiples(scales: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """[rows, groups] float16: about these scales, those of a row all multiples of a number of four bits; a row of
    zeros where there is room.
    """
    factors = generator.integers(8, 16, (len(scales), 1)) * 2.0**-16
    whole = np.clip(np.round(scales / factors), -127, 127)
    whole[3:4] = 0
    return (whole * factors + 0.0).astype(np.float16)


def dense(matrix: Matrix) -> np.ndarray:
    """[rows, columns] float64."""
    if matrix.scales is None:
        return (matrix.values.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    scales = np.repeat(matrix.scales.astype(np.float64), matrix.group_size, axis=1)
    return scales[:, : matrix.values.shape[1]] * matrix.values
