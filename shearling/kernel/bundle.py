"""What one operator of the extension reads: packed matrices and vectors, one after the other in one constant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shearling.errors import ArtefactCorrupt
from shearling.kernel.loading.packed_operator import NORMS, WEIGHTS_PORT
from shearling.kernel.packed_format import ALIGNMENT, HEADER, HEADER_BYTES, Bytes

OPERATORS = tuple(WEIGHTS_PORT)
TOTAL_BYTES = 9
"""Place of the size of a packed matrix among the fields of its header."""


@dataclass(frozen=True)
class Bundle:
    """The parts of one constant.

    Attributes:
        matrices: packed, as `shearling.kernel.packed_format.pack` makes them; not verified.
        vectors: float32, in the order that the operator names.
    """

    matrices: tuple[Bytes, ...]
    vectors: tuple[npt.NDArray[np.float32], ...]


def matrix_count(operator: str, attributes: Mapping[str, Any]) -> int:
    """How many matrices an operator reads."""
    if operator in ("SparseHead", "SparseEmbedding"):
        return 1
    if operator == "SparseLinear":
        return len(attributes["rows"])
    inner = 3 if attributes["gated"] else 2
    return inner if operator == "SparseMLP" else 1 + inner + len(attributes["rows"])


def vector_sizes(operator: str, attributes: Mapping[str, Any]) -> list[int]:
    """Lengths of the vectors behind the matrices."""
    width = attributes["hidden"] if operator == "SparseLayer" else attributes["columns"]
    norms = [attributes.get(name, 0.0) for name in NORMS]
    biases = list(attributes["rows"]) if attributes.get("bias") else []
    return [width for epsilon in norms if epsilon > 0.0] + biases


def split_bundle(content: Bytes, operator: str, attributes: Mapping[str, Any]) -> Bundle:
    """Take a constant apart.

    Args:
        content: uint8 [bytes].
        operator: one of `OPERATORS`.
        attributes: of the node.

    Raises:
        ArtefactCorrupt: the sizes that it names do not add up to its own.
    """
    start, matrices = 0, list[Bytes]()
    for _ in range(matrix_count(operator, attributes)):
        if content.size - start < HEADER_BYTES:
            raise ArtefactCorrupt(f"{content.size} bytes end before matrix {len(matrices)}")
        total = HEADER.unpack_from(content[start : start + HEADER_BYTES].tobytes())[TOTAL_BYTES]
        if not HEADER_BYTES <= total <= content.size - start:
            raise ArtefactCorrupt(f"matrix {len(matrices)} claims {total} bytes of {content.size - start}")
        matrices.append(content[start : start + total])
        start += total
    vectors: list[npt.NDArray[np.float32]] = []
    for size in vector_sizes(operator, attributes):
        if content.size - start < 4 * size:
            raise ArtefactCorrupt(f"{content.size} bytes end before vector {len(vectors)}")
        vectors.append(np.ascontiguousarray(content[start : start + 4 * size]).view(np.float32))
        start += -(-4 * size // ALIGNMENT) * ALIGNMENT
    if start != content.size:
        raise ArtefactCorrupt(f"{content.size} bytes, the operator reads {start}")
    return Bundle(tuple(matrices), tuple(vectors))
