"""The packed form of a weight matrix: one self-describing tensor of bytes, version 1.

A panel is 16 output rows; a block is one panel by 2 columns (bf16) or 4 columns (int8, int4): 32 or 64 weights, a
vector register of the widest machines. In a block, weight (row r, column c) has position r * block_columns + c. Blocks
follow each other along the columns, panels along the rows; rows and columns are padded with zeros to whole blocks. All
numbers are little-endian; sections start on multiples of 64 bytes, with zeros between them and 64 zeros at the end.

header, 128 bytes
    magic `SHEARLNG`; u32: version, value type (1 bf16, 2 int8, 4 int4; 3 was int4 in another order), encoding (0 dense,
    1 bitmask), scale type (0 none, 1 f32, 2 f16, 3 i8); u64: rows, columns, group size, stored values, total bytes,
    offsets of scales, panel offsets, masks, values; zeros
scales
    [panels, groups, 16] f32 or f16: the scale of every row and group of `group_size` columns; bf16 has none. Of i8 each
    panel has [16] f32, the factor of each row, then [groups, 16] i8 within -127..127: a scale is their product, and
    exactly an f16. The factor is the largest number that the row's scales are multiples of, 0 where all are zero.
    Scales of f16 are stored so wherever that is smaller and every row allows it.
panel offsets (bitmask only)
    [panels + 1] u64: where each panel's values start, in bytes from the first value
masks (bitmask only)
    [panels, blocks] u32 (bf16) or u64: bit p is set where the weight at position p is stored
values
    stored weights in the order of their positions: bf16 2 bytes; int8 1 byte; int4 a nibble, two's complement. Blocks
    of int4 go in twos along a panel, the last of an odd number alone: byte i holds in its lower nibble what the first
    block stores as its i-th weight, in its upper nibble that of the second, and zero where one stores no more. So both
    are expanded from one register, and nothing has to be put in order before.

A weight is stored where its bits are not all zero, so packing is reversible bit for bit (a bf16 -0.0 is stored). The
dense encoding stores every position of every block; it serves matrices with too few zeros.

The operators of the OpenVINO extension (operator set `shearling`). Every input and output of such a node costs about
1.2 microseconds a token, and every node 2, so all constants of a node are one input, `weights`: u8 [bytes], the packed
matrices one after the other, then f32 vectors, each filled up with zeros to a multiple of 64 bytes (`bundle` makes it).
Fewer, larger nodes win.

`SparseLinear`: y_i = W_i norm(x) [+ bias_i] [+ residual]
    inputs: x [..., columns] floating; weights: W_0 .. W_{m-1}, gamma [columns] (norm_epsilon > 0),
        bias_0 .. bias_{m-1} [rows_i] (bias); residual [..., rows_0] (residual, m = 1 only).
    outputs: m tensors [..., rows_i] of x's type.
    attributes: `rows` list of int (its length is m), `columns` int, `norm_epsilon` float (0: no norm), `bias` bool,
        `residual` bool.
`SparseMLP`: y = W_down(act(W_gate n) * (W_up n)) [+ x] with n = norm(x)
    inputs: x [..., columns]; weights: W_gate (if gated), W_up, W_down, gamma [columns] (norm_epsilon > 0).
    output: [..., columns] of x's type. Without a gate: W_down act(W_up n).
    attributes: `columns` int, `inner` int (rows of W_up), `activation` str: silu, gelu_erf, gelu_tanh or relu;
        `gated` bool, `norm_epsilon` float, `residual` bool (adds x itself, before the norm).
`SparseLayer`: from the end of one attention to the start of the next, in one node:
    h = residual + norm_o(W_o x); y = h + norm_d(MLP(norm(h))) as in SparseMLP; z_i = V_i norm'(y) [+ bias_i]
    inputs: x [..., columns]; residual [..., hidden]; weights: W_o, W_gate (if gated), W_up, W_down, V_0 .. V_{m-1},
        gamma [hidden] of norm_o (projection_epsilon > 0), of norm (norm_epsilon > 0), of norm_d (mlp_epsilon > 0) and
        of norm' (next_epsilon > 0), bias_0 .. bias_{m-1} [rows_i] (bias).
    outputs: y [..., hidden], then m tensors z_i [..., rows_i], all of x's type; m may be 0.
    attributes: `rows` list of int, `columns` int (of W_o), `hidden` int, `inner` int, `activation` str, `gated` bool,
        `projection_epsilon`, `norm_epsilon`, `mlp_epsilon` and `next_epsilon` float (0: no such norm), `bias` bool.

`SparseDecoder`: layers of one shape, each a `SparseLayer` whose x is the attention before it. In no file of an
export: `decoder_fusion` makes it when a model is loaded.
    inputs: qkv [batch, rows, (heads + 2 kv_heads) head_size], queries, keys and values of all heads side by side;
        residual; step, of `SparseStep`; cache u8 [batch, layers 2 kv_heads, slots, bytes]; weights of every layer, as
        of `SparseLayer`; vectors f32 [length] (qkv_bias or head_norm_epsilon > 0), for every layer: what is
        added to qkv, then gammas of the norms of each query and each key, [head_size] both.
    outputs: y of the last layer; the cache with the new keys and values; the z_i of the last layer side by side in one
        tensor, unless m is 0. Those of one layer are the qkv of the next.
    attributes: those of `SparseLayer`, and `layers` int, `heads` int, `kv_heads` int, `head_size` int (a multiple of
        16), `rotary_size` int, even: numbers at the start of a head that angles turn (0: all), `interleaved` bool,
        `cache` str: f16, i8, f32 or bf16, `scale` float (of a product of query and key), `qkv_bias` bool,
        `head_norm_epsilon` float (0: no norm of queries and keys, which comes before they are turned), `order` list of
        int: 0 (queries), 1 (keys), 2 (values) as qkv has them; `windows` list of int, of each layer:
        positions that a query sees, with its own, or 0 for all up to it (not written: 0); `angles` list of int, of each
        layer: the set of the step that turns it, or -1 for none (not written: 0).
    The rotary embedding turns halves of what it turns: x * cos + [-x_2, x_1] * sin; those are its even and its odd
    numbers where it is `interleaved`, and stay in this order, which changes no product of a query and a key. A slot
    has 2, 1, 4 or 2 bytes for a number, and for i8 a scale in half precision for every 32 of them. A query sees the
    positions up to its own that neither the window nor the mask hides.
`SparseStep`: what all attentions of one inference share
    inputs: cosines and sines [1 or batch, rows, rotary_size], and those of up to 7 more sets, of the same shape; mask
        [batch, positions] i64 or i32, new positions last; the rows of the batch that each sequence continues, [batch]
        i32 or i64.
    output: u8 [slots, bytes]; specified in cpp/attention.hpp, as the cache is. attribute: `format_version`.
Layers that are constants once a text is read, written into no file: `shearling/kernel/loading` makes them in the text
of an IR whose weights file does not hold what it needs.
`Numbers`: no inputs. attributes: `element_type` str, `shape` list of int, `content` str: the bytes in hexadecimal
    digits, little-endian.
`Const`: what one packed matrix holds, in the form that NNCF writes
    attributes: `element_type` u8, `shape`, `offset` and `size`: its bytes in the weights file, as of any constant;
        `part` str: `values`, bf16 or i8 [rows, columns], or i4, and i8 in groups, [rows, groups, columns of a group];
        or `scales`, f16 or f32 [rows, 1] or [rows, groups, 1].

`SparseHead`: y = W x, the vocabulary projection
    inputs: x [..., columns]; weights: W. output: [..., rows] of x's type. attributes: `rows` int, `columns` int.
    A MatMul to whoever asks for the base type, as OpenVINO GenAI does, which cuts a prompt off before the last one of
    a graph.
`SparseEmbedding`: rows of W by their number
    inputs: tokens [...] i32 or i64; weights: W, the same constant as that of a tied head. output: [..., columns] f32.
    attributes: `rows` int, `columns` int. A token outside of the rows is an error.

norm(x) = gamma * x / sqrt(mean(x^2) + norm_epsilon) (RMSNorm). All have the attribute `format_version`, the int 1, and
those with products `precision` str, `auto` or `exact`; all attributes are always written but `expanded` bool (false):
whether zeros are put back into weights when they are taken, which changes no result. With `exact` activations stay
f32. With `auto` integer weights multiply activations in fixed point: 16 bits for one or two rows of int8, for all of
int8 where the processor has AVX2 without VNNI, for all where groups of weights are no multiples of 32, and for eight
rows or more where it has AMX; else 8 bits in groups of 32, as OpenVINO itself does. With AMX weights in groups multiply
bf16 from 128 rows on. bf16 weights multiply f32, or bf16 for more than two rows where the processor multiplies that
(AVX512_BF16, AMX); without AVX2 everything is f32.

The operator of ONNX Runtime (domain `shearling`, version 1) is `SparseLinear` with one matrix: y = W x
    inputs: x [..., columns] float32; weights: u8 [bytes], an initializer: W. output: [..., rows] float32.
    attributes: `rows` int, `columns` int, and `precision` and `format_version` as above.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from shearling.errors import ArtefactCorrupt, ModelUnsupported, NonFiniteWeights, ShapeMismatch
from shearling.kernel.packed_scales import (
    PANEL_ROWS,
    ScaleType,
    bytes_are_smaller,
    read_panels,
    smallest_scales,
    write_panels,
)

MAGIC = b"SHEARLNG"
VERSION = 1
ALIGNMENT = 64
PANELS_AT_ONCE = 16
HEADER = struct.Struct("<8s4I9Q")
HEADER_BYTES = 128
MAX_SIZE = 1 << 24
"""Limit of rows and of columns."""
_FORMER_INT4 = 3

Bytes = npt.NDArray[np.uint8]
Values = npt.NDArray[Any]


class ValueType(IntEnum):
    """How a weight is stored."""

    BF16 = 1
    INT8 = 2
    INT4 = 4

    @property
    def block_columns(self) -> int:
        """Columns of one block."""
        return 2 if self is ValueType.BF16 else 4

    @property
    def block_size(self) -> int:
        """Weights of one block; bits of its mask."""
        return PANEL_ROWS * self.block_columns

    @property
    def array_type(self) -> np.dtype[Any]:
        """Type of the unpacked weights: bf16 as its bits, int4 in int8."""
        return np.dtype(np.uint16) if self is ValueType.BF16 else np.dtype(np.int8)


class Encoding(IntEnum):
    """Which positions are stored."""

    DENSE = 0
    BITMASK = 1


@dataclass(frozen=True)
class Matrix:
    """A weight matrix W = scales * values.

    Attributes:
        values: [rows, columns] uint16 (the bits of bf16) or int8 (int8; int4 in -8..7).
        value_type: how a weight is stored.
        scales: [rows, groups] float32 or float16, one for each `group_size` columns; None for bf16.
        group_size: columns per scale, a multiple of 4 or all columns; 0 for bf16.
    """

    values: Values
    value_type: ValueType
    scales: Values | None = None
    group_size: int = 0


@dataclass(frozen=True)
class Header:
    """What the first bytes of a packed matrix say, and what follows from it."""

    value_type: ValueType
    encoding: Encoding
    scale_type: ScaleType
    rows: int
    columns: int
    group_size: int
    stored: int
    value_bytes: int

    @property
    def panels(self) -> int:
        """Groups of 16 rows."""
        return -(-self.rows // PANEL_ROWS)

    @property
    def blocks(self) -> int:
        """Blocks of a panel."""
        return -(-self.columns // self.value_type.block_columns)

    @property
    def groups(self) -> int:
        """Scales of a row."""
        return -(-self.columns // self.group_size) if self.group_size else 0

    @property
    def dense_panel_bytes(self) -> int:
        """Size of the values of a panel that stores all of them."""
        if self.value_type is ValueType.INT4:
            return -(-self.blocks // 2) * self.value_type.block_size
        return self.blocks * self.value_type.block_size * self.value_type.array_type.itemsize

    @property
    def section_bytes(self) -> tuple[int, int, int, int]:
        """Sizes of scales, panel offsets, masks and values."""
        masked = self.encoding is Encoding.BITMASK
        return (
            self.panels * self.scale_type.panel_bytes(self.groups),
            (self.panels + 1) * 8 if masked else 0,
            self.panels * self.blocks * self.value_type.block_size // 8 if masked else 0,
            self.value_bytes,
        )

    @property
    def sections(self) -> tuple[int, int, int, int]:
        """Offsets of scales, panel offsets, masks and values."""
        starts = [HEADER_BYTES]
        for size in self.section_bytes[:3]:
            starts.append(_align(starts[-1] + size))
        return starts[0], starts[1], starts[2], starts[3]

    @property
    def total_bytes(self) -> int:
        """Size of the packed matrix."""
        return _align(self.sections[3] + self.value_bytes) + ALIGNMENT

    def to_bytes(self) -> bytes:
        """The header as it is stored."""
        kinds = (VERSION, self.value_type, self.encoding, self.scale_type)
        sizes = (self.rows, self.columns, self.group_size, self.stored, self.total_bytes)
        return HEADER.pack(MAGIC, *kinds, *sizes, *self.sections).ljust(HEADER_BYTES, b"\0")


def _align(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def pack(matrix: Matrix, encoding: Encoding = Encoding.BITMASK) -> Bytes:
    """Pack a matrix; the reference that the compiled library is tested against.

    Returns:
        uint8 [bytes].

    Raises:
        ShapeMismatch: values, scales and group size do not fit each other.
        NonFiniteWeights: NaN or infinity in bf16 values or in scales.
        ModelUnsupported: int4 values outside -8..7, or a matrix beyond the limits.
    """
    return _pack(matrix, encoding, smallest_scales(matrix.scales, _check_matrix(matrix)))


def _pack(matrix: Matrix, encoding: Encoding, scale_type: ScaleType) -> Bytes:
    kind = matrix.value_type
    blocks = _to_blocks(matrix.values, kind)
    kept = blocks != 0 if encoding is Encoding.BITMASK else np.ones_like(blocks, dtype=np.bool_)
    counts = kept.sum(axis=2, dtype=np.int64)
    block_bytes = _block_bytes(counts, kind)
    values = _pack_values(blocks, kept, block_bytes, kind)
    rows, columns = matrix.values.shape
    header = Header(kind, encoding, scale_type, rows, columns, matrix.group_size, int(counts.sum()), values.nbytes)
    packed = np.zeros(header.total_bytes, np.uint8)
    packed[:HEADER_BYTES] = np.frombuffer(header.to_bytes(), np.uint8)
    parts: list[Values] = [np.zeros(0, np.uint8) if matrix.scales is None else write_panels(matrix.scales, scale_type)]
    if encoding is Encoding.BITMASK:
        offsets = np.concatenate([[0], np.cumsum(block_bytes.sum(axis=1))]).astype("<u8")
        parts += [offsets, np.packbits(kept, axis=2, bitorder="little")]
    else:
        parts += [np.zeros(0, np.uint8)] * 2
    for start, part in zip(header.sections, [*parts, values], strict=True):
        packed[start : start + part.nbytes] = np.ascontiguousarray(part).view(np.uint8).reshape(-1)
    return packed


def _check_matrix(matrix: Matrix) -> ScaleType:
    """Type of the scales, if all fits."""
    scale_type = check_parts(matrix)
    values, kind = matrix.values, matrix.value_type
    if kind is ValueType.BF16 and ((values & 0x7F80) == 0x7F80).any():
        raise NonFiniteWeights("NaN or infinity in bf16 values")
    if kind is ValueType.INT4 and (values.min() < -8 or values.max() > 7):
        raise ModelUnsupported(f"int4 values reach from {values.min()} to {values.max()}, not within -8..7")
    if matrix.scales is not None and not np.isfinite(matrix.scales).all():
        raise NonFiniteWeights("NaN or infinity in scales")
    return scale_type


def check_parts(matrix: Matrix) -> ScaleType:
    """Type of the scales as they are, if the parts of a matrix fit each other, whatever numbers they hold.

    Raises:
        ShapeMismatch: values, scales and group size do not, or are of another type.
        ModelUnsupported: it is too large.
    """
    values, scales, group_size, kind = matrix.values, matrix.scales, matrix.group_size, matrix.value_type
    if values.ndim != 2 or 0 in values.shape or values.dtype != kind.array_type:
        raise ShapeMismatch(f"{list(values.shape)} of {values.dtype} is not a matrix of {kind.name.lower()} values")
    rows, columns = values.shape
    if max(rows, columns) > MAX_SIZE:
        raise ModelUnsupported(f"a matrix of {[rows, columns]} is larger than {MAX_SIZE} on a side")
    if kind is ValueType.BF16:
        if scales is not None or group_size:
            raise ShapeMismatch("bf16 values take no scales")
        return ScaleType.NONE
    if scales is None or scales.dtype not in (np.float16, np.float32):
        raise ShapeMismatch("integer values need scales of float16 or float32")
    if not 0 < group_size <= columns or (group_size % 4 and group_size != columns):
        raise ShapeMismatch(f"a group of {group_size} columns of {columns} is neither a multiple of 4 nor a whole row")
    if scales.shape != (rows, -(-columns // group_size)):
        raise ShapeMismatch(f"scales are {list(scales.shape)}, expected [{rows}, {-(-columns // group_size)}]")
    return ScaleType.F16 if scales.dtype == np.float16 else ScaleType.F32


def _to_blocks(values: Values, kind: ValueType) -> Values:
    """[rows, columns] -> [panels, blocks, block size]."""
    rows, columns = values.shape
    padded = np.pad(values, ((0, -rows % PANEL_ROWS), (0, -columns % kind.block_columns)))
    grid = padded.reshape(padded.shape[0] // PANEL_ROWS, PANEL_ROWS, -1, kind.block_columns)
    return np.ascontiguousarray(grid.transpose(0, 2, 1, 3)).reshape(grid.shape[0], grid.shape[2], kind.block_size)


def _from_blocks(blocks: Values, rows: int, columns: int, kind: ValueType) -> Values:
    grid = blocks.reshape(blocks.shape[0], blocks.shape[1], PANEL_ROWS, kind.block_columns).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(grid.reshape(blocks.shape[0] * PANEL_ROWS, -1)[:rows, :columns])


def _block_bytes(counts: npt.NDArray[np.int64], kind: ValueType) -> npt.NDArray[np.int64]:
    """Bytes of the values of each block, [panels, blocks], from the number of its stored values; of blocks that share
    them, the first has all.
    """
    if kind is not ValueType.INT4:
        return counts * kind.array_type.itemsize
    shared = counts.copy()
    partners = shared[:, 1::2]
    shared[:, : 2 * partners.shape[1] : 2] = np.maximum(shared[:, : 2 * partners.shape[1] : 2], partners)
    shared[:, 1::2] = 0
    return shared


def _pack_values(
    blocks: Values, kept: npt.NDArray[np.bool_], block_bytes: npt.NDArray[np.int64], kind: ValueType
) -> Bytes:
    if kind is not ValueType.INT4:
        return blocks[kept].view(np.uint8)
    nibbles = np.zeros(2 * int(block_bytes.sum()), np.uint8)
    for panels, positions in _nibble_positions(kept, block_bytes):
        nibbles[positions] = blocks[panels][kept[panels]].view(np.uint8) & 15
    return np.bitwise_or(nibbles[0::2], np.left_shift(nibbles[1::2], 4), dtype=np.uint8)


def _nibble_positions(
    kept: npt.NDArray[np.bool_], block_bytes: npt.NDArray[np.int64]
) -> Iterator[tuple[slice, npt.NDArray[np.int64]]]:
    """Where the nibble of every stored value lies, some panels at a time: a position takes as much as 16 nibbles."""
    starts: Values = (np.cumsum(block_bytes) - block_bytes.reshape(-1)).reshape(block_bytes.shape)
    starts[:, 1::2] = starts[:, : 2 * (starts.shape[1] // 2) : 2]
    second = np.arange(block_bytes.shape[1])[None, :, None] % 2
    for first in range(0, len(kept), PANELS_AT_ONCE):
        panels = slice(first, first + PANELS_AT_ONCE)
        ranks = np.cumsum(kept[panels], axis=2, dtype=np.int64) - 1
        yield panels, (2 * (starts[panels, :, None] + ranks) + second)[kept[panels]]


def read_header(packed: Bytes) -> Header:
    """Read and check the header alone: sizes, sections and their total.

    Raises:
        ArtefactCorrupt: it contradicts itself or the number of bytes.
    """
    if packed.dtype != np.uint8 or packed.ndim != 1 or packed.size < HEADER_BYTES:
        raise ArtefactCorrupt(f"{list(packed.shape)} of {packed.dtype} is too short for a packed matrix")
    raw = packed[:HEADER_BYTES].tobytes()
    magic, version, value_type, encoding, scale_type, rows, columns, group_size, stored, total, *sections = (
        HEADER.unpack_from(raw)
    )
    if magic != MAGIC or version != VERSION:
        raise ArtefactCorrupt(f"not a packed matrix of version {VERSION}: magic {magic!r}, version {version}")
    if value_type == _FORMER_INT4:
        raise ArtefactCorrupt("it is int4 in the layout of an earlier version", remedy="Export again")
    if value_type not in set(ValueType) or encoding not in set(Encoding) or scale_type not in set(ScaleType):
        raise ArtefactCorrupt(f"unknown value type {value_type}, encoding {encoding} or scale type {scale_type}")
    if not (0 < rows <= MAX_SIZE and 0 < columns <= MAX_SIZE):
        raise ArtefactCorrupt(f"{rows} rows and {columns} columns are not within 1..{MAX_SIZE}")
    kind, scaled = ValueType(value_type), ScaleType(scale_type)
    if not _plausible_group(kind, scaled, group_size, columns):
        raise ArtefactCorrupt(f"a group of {group_size} columns with scales {scaled.name} does not fit {kind.name}")
    if total != packed.size:
        raise ArtefactCorrupt(f"the header promises {total} bytes, there are {packed.size}")
    last = sections[-1]
    value_bytes = packed.size - ALIGNMENT - last
    header = Header(kind, Encoding(encoding), scaled, rows, columns, group_size, stored, max(value_bytes, 0))
    if list(header.sections) != sections or header.to_bytes() != raw or value_bytes < 0:
        raise ArtefactCorrupt(f"sections at {sections} do not follow from the sizes")
    # Of a bitmask the masks are there, whose size bounds that of the matrix.
    if header.encoding is Encoding.DENSE and value_bytes < header.panels * header.dense_panel_bytes:
        raise ArtefactCorrupt(f"{value_bytes} bytes of values are too few for {rows} x {columns}")
    return header


def _plausible_group(kind: ValueType, scaled: ScaleType, group_size: int, columns: int) -> bool:
    if kind is ValueType.BF16:
        return scaled is ScaleType.NONE and group_size == 0
    if scaled is ScaleType.NONE or not 0 < group_size <= columns or (group_size % 4 and group_size != columns):
        return False
    return scaled is not ScaleType.I8 or bytes_are_smaller(-(-columns // group_size))


def unpack(packed: Bytes) -> Matrix:
    """Inverse of `pack`, for either encoding.

    Raises:
        ArtefactCorrupt: anything in it contradicts anything else; nothing is read outside it.
    """
    header = read_header(packed)
    kind = header.value_type
    kept = _read_masks(packed, header)
    counts = kept.sum(axis=2, dtype=np.int64)
    block_bytes = _block_bytes(counts, kind)
    _check_counts(packed, header, counts, block_bytes)
    blocks = np.zeros(kept.shape, kind.array_type)
    start = header.sections[3]
    stored = packed[start : start + int(block_bytes.sum())]
    if kind is ValueType.INT4:
        nibbles = np.stack([stored & 15, stored >> 4], axis=1).reshape(-1)
        for panels, positions in _nibble_positions(kept, block_bytes):
            blocks[panels][kept[panels]] = (nibbles[positions] ^ 8).astype(np.int8) - 8
    else:
        blocks[kept] = stored.view(kind.array_type)
    values = _from_blocks(blocks, header.rows, header.columns, kind)
    matrix = Matrix(values, kind, _read_scales(packed, header), header.group_size)
    # A reader that trusts nothing: what was read, packed again, is what was given.
    try:
        plain_scales = _check_matrix(matrix)
    except (NonFiniteWeights, ModelUnsupported) as error:
        raise ArtefactCorrupt(f"a packed matrix holds {error.message}") from None
    # Scales of f16 are read where i8 would do, too: an earlier version knew no i8.
    if header.scale_type not in (plain_scales, smallest_scales(matrix.scales, plain_scales)):
        raise ArtefactCorrupt("scales are not the bytes and factors of halves")
    if not np.array_equal(_pack(matrix, header.encoding, header.scale_type), packed):
        raise ArtefactCorrupt("a packed matrix stores zeros, or padding or scales that are none")
    return matrix


def _read_masks(packed: Bytes, header: Header) -> npt.NDArray[np.bool_]:
    shape = (header.panels, header.blocks, header.value_type.block_size)
    if header.encoding is Encoding.DENSE:
        return np.ones(shape, np.bool_)
    start, size = header.sections[2], header.section_bytes[2]
    return np.unpackbits(packed[start : start + size], bitorder="little").view(np.bool_).reshape(shape)


def _check_counts(
    packed: Bytes, header: Header, counts: npt.NDArray[np.int64], block_bytes: npt.NDArray[np.int64]
) -> None:
    if int(counts.sum()) != header.stored:
        raise ArtefactCorrupt(f"the masks keep {int(counts.sum())} weights, the header says {header.stored}")
    needed = int(block_bytes.sum())
    if _align(header.sections[3] + needed) + ALIGNMENT != packed.size:
        raise ArtefactCorrupt(f"{needed} bytes of values do not fit the {packed.size} bytes of the matrix")
    if header.encoding is Encoding.BITMASK:
        start, size = header.sections[1], header.section_bytes[1]
        offsets = packed[start : start + size].view("<u8")
        if not np.array_equal(offsets, np.concatenate([[0], np.cumsum(block_bytes.sum(axis=1))]).astype(np.uint64)):
            raise ArtefactCorrupt("panel offsets disagree with the masks")


def _read_scales(packed: Bytes, header: Header) -> Values | None:
    if header.scale_type is ScaleType.NONE:
        return None
    start, size = header.sections[0], header.section_bytes[0]
    return read_panels(packed[start : start + size].reshape(header.panels, -1), header.scale_type, header.rows)


def stored_scale_bytes(matrix: Matrix) -> int:
    """Bytes of a matrix's scales once it is packed."""
    if matrix.scales is None:
        return 0
    plain = ScaleType.F16 if matrix.scales.dtype == np.float16 else ScaleType.F32
    rows, groups = matrix.scales.shape
    return -(-rows // PANEL_ROWS) * smallest_scales(matrix.scales, plain).panel_bytes(groups)


def bundle(matrices: Sequence[Bytes], vectors: Sequence[Values] = ()) -> Bytes:
    """All constants of one operator, in the order that it names.

    Args:
        matrices: packed, each a multiple of 64 bytes long.
        vectors: norm weights and biases; stored as f32.
    """
    parts = list(matrices)
    for vector in vectors:
        flat = np.ascontiguousarray(vector, np.float32).reshape(-1).view(np.uint8)
        parts.append(np.pad(flat, (0, -flat.size % ALIGNMENT)))
    return np.concatenate(parts)


def packed_bytes(
    rows: int,
    columns: int,
    stored: int,
    matrix_type: ValueType,
    *,
    scale_bytes: int = 0,
    encoding: Encoding = Encoding.BITMASK,
) -> int:
    """Size of a packed matrix, for cost rules: exact but for alignment, and for how evenly int4's zeros are spread.

    Args:
        rows: of the matrix.
        columns: of the matrix.
        stored: weights that are not zero.
        matrix_type: how a weight is stored.
        scale_bytes: of all scales.
        encoding: dense counts every weight and no mask.
    """
    positions = -(-rows // PANEL_ROWS) * PANEL_ROWS * columns
    masks = positions // 8 if encoding is Encoding.BITMASK else 0
    weights = expected_value_bytes(stored if encoding is Encoding.BITMASK else positions, positions, matrix_type)
    return HEADER_BYTES + scale_bytes + masks + weights + ALIGNMENT


def expected_value_bytes(stored: int, positions: int, kind: ValueType) -> int:
    """Bytes of the values of a matrix whose zeros lie anywhere.

    The fuller of two blocks of n positions, each stored with probability p, stores n p + sqrt(n p (1 - p) / pi).

    Args:
        stored: weights.
        positions: of all blocks.
        kind: how a weight is stored.
    """
    if kind is not ValueType.INT4:
        return stored * kind.array_type.itemsize
    share = stored / max(1, positions)
    spread = math.sqrt(share * (1 - share) / (math.pi * kind.block_size)) if 0 < share < 1 else 0.0
    return math.ceil(positions * (share + spread) / 2)
