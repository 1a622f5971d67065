"""The scales of a packed matrix; where they lie is specified in `shearling.kernel.packed_format`."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

PANEL_ROWS = 16

Values = npt.NDArray[Any]


class ScaleType(IntEnum):
    """How scales are stored."""

    NONE = 0
    F32 = 1
    F16 = 2
    I8 = 3

    @property
    def array_type(self) -> np.dtype[Any]:
        """Type of the unpacked scales."""
        return np.dtype(np.float32 if self is ScaleType.F32 else np.float16)

    def panel_bytes(self, groups: int) -> int:
        """Bytes of the scales of a panel."""
        if self is ScaleType.NONE:
            return 0
        return PANEL_ROWS * (4 + groups if self is ScaleType.I8 else groups * self.array_type.itemsize)


def smallest_scales(scales: Values | None, plain: ScaleType) -> ScaleType:
    """In which type a matrix stores its scales.

    Args:
        scales: [rows, groups], or None.
        plain: in which they are.
    """
    if scales is None or plain is not ScaleType.F16:
        return plain
    return ScaleType.I8 if bytes_are_smaller(scales.shape[1]) and _split_scales(scales) is not None else plain


def bytes_are_smaller(groups: int) -> bool:
    """Whether scales take less as I8 than as F16, where they can be stored so.

    Args:
        groups: of a row.
    """
    return ScaleType.I8.panel_bytes(groups) < ScaleType.F16.panel_bytes(groups)


def _split_scales(scales: Values) -> tuple[Values, Values] | None:
    """[rows, groups] float16 -> the factor of each row, [rows] float32, and what it is multiplied by, [rows, groups]
    int8; None where they are not all such products.
    """
    # Every finite float16 is a whole number of these.
    unit = 2.0**-24
    units = (scales.astype(np.float64) / unit).astype(np.int64)
    factors = np.gcd.reduce(units, axis=1)
    multiples = units // np.maximum(factors, 1)[:, None]
    negative_zero = np.signbit(scales) & (scales == 0)
    if np.abs(multiples).max() > np.iinfo(np.int8).max or negative_zero.any():
        return None
    return (factors * unit).astype(np.float32), multiples.astype(np.int8)


def write_panels(scales: Values, kind: ScaleType) -> Values:
    """Scales as a packed matrix holds them.

    Args:
        scales: [rows, groups] float32 or float16.
        kind: in which type they are stored.

    Returns:
        [panels, groups, 16] of their type; or [panels, bytes] of factors, and behind them what these are multiplied by.
    """
    split = _split_scales(scales) if kind is ScaleType.I8 else None
    if split is None:
        return _by_panels(scales)
    factors, multiples = split
    panels = _by_panels(multiples)
    parts = [_by_panels(factors[:, None]).view(np.uint8), panels.view(np.uint8)]
    return np.concatenate([part.reshape(panels.shape[0], -1) for part in parts], axis=1)


def _by_panels(rows: Values) -> Values:
    """[rows, n] -> [panels, n, 16]."""
    padded = np.pad(rows, ((0, -rows.shape[0] % PANEL_ROWS), (0, 0)))
    return np.ascontiguousarray(padded.reshape(-1, PANEL_ROWS, rows.shape[1]).transpose(0, 2, 1))


def read_panels(stored: Values, kind: ScaleType, rows: int) -> Values:
    """The inverse of `write_panels`, [rows, groups].

    Args:
        stored: uint8 [panels, bytes].
        kind: in which type they are stored.
        rows: of the matrix.
    """
    if kind is not ScaleType.I8:
        return _from_panels(np.ascontiguousarray(stored).view(kind.array_type), rows)
    factors = _from_panels(np.ascontiguousarray(stored[:, : PANEL_ROWS * 4]).view(np.float32), rows)
    multiples = _from_panels(stored[:, PANEL_ROWS * 4 :].view(np.int8), rows)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(factors * multiples).astype(np.float16)


def _from_panels(panels: Values, rows: int) -> Values:
    """[panels, n * 16] -> [rows, n]."""
    by_rows = panels.reshape(panels.shape[0], -1, PANEL_ROWS).transpose(0, 2, 1)
    return np.ascontiguousarray(by_rows.reshape(panels.shape[0] * PANEL_ROWS, -1)[:rows])
