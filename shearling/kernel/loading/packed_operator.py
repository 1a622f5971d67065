"""The packed operators of an IR, as its text and its weights file describe them."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .ir_text import IrText, MalformedText, Source

WEIGHTS_PORT: Mapping[str, int] = {
    "SparseLinear": 1,
    "SparseMLP": 1,
    "SparseLayer": 2,
    "SparseHead": 1,
    "SparseEmbedding": 1,
}
"""Which input of an operator holds its weights."""
NORMS = ("projection_epsilon", "norm_epsilon", "mlp_epsilon", "next_epsilon")
"""Attributes of an operator's norms, in the order of what its constant holds of them; each is absent or 0 where there
is none."""
HEADER = struct.Struct("<8s4I9Q")
"""Of a packed matrix; shearling/kernel/packed_format.py specifies it."""
HEADER_BYTES = 128
ALIGNMENT = 64
MAGIC = b"SHEARLNG"
KINDS = {1: "bf16", 2: "int8", 4: "int4"}
HALVES = (2, 3)  # f16, and bytes times a factor, whose products are f16


@dataclass(frozen=True)
class PackedPart:
    """One matrix of an operator.

    Attributes:
        first: its first byte in the constant.
        size: its bytes.
        kind: bf16, int8 or int4.
        dense: whether zeros are stored, too.
        two_of_four: whether no row has more than two integers in four columns, to go by the first 16 rows.
        half_scales: whether scales are f16.
        group_size: columns of a scale; 0 for bf16.
        stored: numbers.
    """

    first: int
    size: int
    kind: str
    dense: bool
    two_of_four: bool
    half_scales: bool
    rows: int
    columns: int
    group_size: int
    stored: int

    @property
    def groups(self) -> int:
        """Scales of a row."""
        return -(-self.columns // self.group_size) if self.group_size else 0

    @property
    def unpacked_bytes(self) -> int:
        """Of the weights in the form that the runtime knows."""
        bits = {"bf16": 16, "int8": 8, "int4": 4}[self.kind]
        return self.rows * self.columns * bits // 8


@dataclass(frozen=True)
class PackedOperator:
    """A layer of the operator set.

    Attributes:
        number: of the layer.
        kind: its type.
        inputs: what feeds it, without the weights.
        weights: the constant.
        offset: first byte of the constant in the file.
        parts: matrices.
        vectors: f32 vectors behind them: first byte in the file, and length.
    """

    number: int
    kind: str
    data: Mapping[str, str]
    inputs: tuple[Source, ...]
    weights: Source
    offset: int
    parts: tuple[PackedPart, ...]
    vectors: tuple[tuple[int, int], ...]

    @property
    def rows(self) -> list[int]:
        """Attribute `rows`, of operators with several products."""
        return integers(self.data.get("rows", ""))

    def epsilon(self, name: str = "norm_epsilon") -> float:
        """Of a norm; 0 where there is none."""
        return float(self.data.get(name, "0"))

    def flag(self, name: str) -> bool:
        """An attribute that is true or false."""
        return self.data.get(name) == "true"

    @property
    def leaves_zeros_out(self) -> bool:
        """Whether some of its matrices do."""
        return any(not part.dense for part in self.parts)

    @property
    def form(self) -> str:
        """What it computes and how its weights are stored, up to a tenth of zeros and where they stand: operators of
        one form are as fast as each other.
        """
        told = {name: value for name, value in self.data.items() if name != "format_version"}
        matrices = [
            f"{part.kind} {part.rows}x{part.columns}/{part.group_size}"
            f"{' dense' if part.dense else ' 2:4' if part.two_of_four else ''}"
            for part in self.parts
        ]
        kept = sum(part.stored for part in self.parts) / max(1, sum(part.rows * part.columns for part in self.parts))
        attributes = " ".join(f"{name}={value}" for name, value in sorted(told.items()))
        return f"{self.kind} {attributes}: {'; '.join(matrices)}; {round(10 * kept) / 10:.1f} kept"


def integers(text: str) -> list[int]:
    """The numbers of a list."""
    return [int(part) for part in text.split(",") if part.strip()]


@contextmanager
def contradictions() -> Iterator[None]:
    """Around what believes a packed operator.

    Raises:
        MalformedText: it lies about itself.
    """
    try:
        yield
    except MalformedText:
        raise
    except (KeyError, ValueError, IndexError, struct.error) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else error
        raise MalformedText(f"a packed operator contradicts itself: {what}") from error


def find_operators(text: IrText, weights: npt.NDArray[np.uint8]) -> list[PackedOperator]:
    """Every packed operator whose weights can be read.

    Args:
        text: of the IR.
        weights: bytes of its file.

    Raises:
        MalformedText: one lies about itself.
    """
    with contradictions():
        return [_operator(text, number, weights) for number in text.layers_of(WEIGHTS_PORT)]


def expand(text: IrText, operators: Iterable[PackedOperator]) -> None:
    """Let operators put zeros back into their weights once, when they take them, and not at every product.

    Args:
        text: changed in place.
        operators: of it, all that read one constant together.
    """
    for operator in operators:
        text.set(operator.number, "expanded", True)


def multiply_exactly(text: IrText, kinds: Iterable[str]) -> None:
    """Let operators leave activations in f32, which they round for speed otherwise.

    Args:
        text: changed in place.
        kinds: of the operators.

    Raises:
        MalformedText: one has no attributes.
    """
    for number in text.layers_of(kinds):
        text.set(number, "precision", "exact")


def _operator(text: IrText, number: int, weights: npt.NDArray[np.uint8]) -> PackedOperator:
    kind, data, inputs = text.kind(number), text.data(number), text.inputs(number)
    constant = inputs.pop(WEIGHTS_PORT[kind])
    place = text.data(constant.layer)
    offset, size = int(place["offset"]), int(place["size"])
    if not 0 <= offset <= offset + size <= weights.size:
        raise MalformedText("a packed weight lies outside of its file")
    content = weights[offset : offset + size]
    parts: list[PackedPart] = []
    for _ in range(_matrix_count(kind, data)):
        parts.append(_part(content, parts[-1].first + parts[-1].size if parts else 0))
    start = parts[-1].first + parts[-1].size
    vectors = []
    for length in _vector_lengths(kind, data):
        vectors.append((offset + start, length))
        start += -(-4 * length // ALIGNMENT) * ALIGNMENT
    if start != size:
        raise MalformedText("its weights have another size than its attributes say")
    return PackedOperator(number, kind, data, tuple(inputs), constant, offset, tuple(parts), tuple(vectors))


def _part(content: npt.NDArray[np.uint8], first: int) -> PackedPart:
    fields: tuple[Any, ...] = HEADER.unpack_from(content[first : first + HEADER.size].tobytes())
    magic, _, kind, encoding, scale, rows, columns, group_size, stored, total, _, _, masks_at, _ = fields
    if magic != MAGIC or kind not in KINDS or not HEADER_BYTES <= total <= content.size - first:
        raise MalformedText("no packed matrix where one was expected")
    dense, pairs = encoding == 0, False
    if not dense and KINDS[kind] != "bf16":
        # A mask of eight bytes, four bits a row, for every four columns.
        masks = content[first + masks_at : first + min(total, masks_at + 8 * -(-columns // 4))]
        pairs = bool((np.unpackbits(masks).reshape(-1, 4).sum(axis=1) <= 2).all())
    return PackedPart(first, total, KINDS[kind], dense, pairs, scale in HALVES, rows, columns, group_size, stored)


def _matrix_count(kind: str, data: Mapping[str, str]) -> int:
    if kind in ("SparseHead", "SparseEmbedding"):
        return 1
    if kind == "SparseLinear":
        return len(integers(data["rows"]))
    inner = 3 if data["gated"] == "true" else 2
    return inner if kind == "SparseMLP" else 1 + inner + len(integers(data["rows"]))


def _vector_lengths(kind: str, data: Mapping[str, str]) -> list[int]:
    width = int(data["hidden"] if kind == "SparseLayer" else data["columns"])
    norms = [float(data.get(name, "0")) for name in NORMS]
    biases = integers(data["rows"]) if data.get("bias") == "true" else []
    return [width for epsilon in norms if epsilon > 0.0] + biases
