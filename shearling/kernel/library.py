"""The compiled kernels from Python: pack, unpack, validate and multiply, without any framework."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from shearling.console import log
from shearling.errors import ArtefactCorrupt, EnvironmentFault, ModelUnsupported, ShapeMismatch
from shearling.kernel.build import build_library
from shearling.kernel.packed_format import Bytes, Encoding, Matrix, check_parts, pack, read_header, unpack
from shearling.kernel.packed_scales import ScaleType
from shearling.kernel.private_files import unloadable

Floats = npt.NDArray[np.float32]
Kernels = str
"""`amx`, `avx512_bf16`, `avx512`, `avx_vnni`, `avx2` or `portable`."""


@functools.cache
def load_library() -> Any:
    """The library with its C interface declared; compiled on first use.

    Raises:
        CompilerMissing: it cannot be built here.
        EnvironmentFault: there is no place for it, or it cannot be loaded from there.
    """
    path = build_library()
    try:
        library: Any = ctypes.CDLL(str(path))
    except OSError as error:
        raise unloadable(path, error) from error
    pointer, size, number, text = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_char_p
    library.shearling_validate.argtypes, library.shearling_validate.restype = [pointer, size], text
    library.shearling_pack.argtypes = [number, number, number, size, size, size, pointer, pointer, pointer]
    library.shearling_pack.restype = size
    library.shearling_unpack.argtypes, library.shearling_unpack.restype = [pointer, size, pointer, pointer], text
    library.shearling_expand.argtypes, library.shearling_expand.restype = [pointer, size, pointer], size
    library.shearling_held_bytes.argtypes, library.shearling_held_bytes.restype = [pointer, size, text], size
    library.shearling_matmul.argtypes = [
        pointer,
        size,
        pointer,
        size,
        size,
        pointer,
        pointer,
        size,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        text,
    ]
    library.shearling_matmul.restype = text
    library.shearling_read_memory.argtypes, library.shearling_read_memory.restype = [pointer, size, size], size
    library.shearling_kernels.argtypes, library.shearling_kernels.restype = [], text
    return library


def kernels_in_use() -> Kernels:
    """The instruction set that this processor gets, or that `SHEARLING_KERNEL` names."""
    return load_library().shearling_kernels().decode()


def read_memory(content: Bytes, *, piece_bytes: int) -> None:
    """Read memory on as many threads as the kernels use, and do nothing with it: what bounds them.

    Args:
        content: what is read.
        piece_bytes: of it at a time, as a product reads its weights; what remains behind the last whole piece is not
            read.
    """
    load_library().shearling_read_memory(content.ctypes.data, content.nbytes, piece_bytes)


def validate(packed: Bytes) -> None:
    """Verify a packed matrix completely.

    Raises:
        ArtefactCorrupt: anything in it contradicts anything else.
    """
    packed = np.ascontiguousarray(packed, np.uint8)
    _refuse(load_library().shearling_validate(packed.ctypes.data, packed.size))


def pack_matrix(matrix: Matrix, encoding: Encoding = Encoding.BITMASK) -> Bytes:
    """What `packed_format.pack` does, to the bit.

    Raises:
        ShapeMismatch: the parts of the matrix do not fit each other.
        ModelUnsupported: they hold NaN or infinity, or what int4 cannot be, or it is too large.
    """
    scale_type = check_parts(matrix)
    values = np.ascontiguousarray(matrix.values)
    scales = None if matrix.scales is None else np.ascontiguousarray(matrix.scales)
    kinds = (matrix.value_type, encoding, scale_type)
    arguments = (
        *kinds,
        *values.shape,
        matrix.group_size,
        values.ctypes.data,
        None if scales is None else scales.ctypes.data,
    )
    size = load_library().shearling_pack(*arguments, None)
    if size == 0:
        raise ModelUnsupported(
            f"a {matrix.value_type.name.lower()} matrix of {list(values.shape)} has sizes or values "
            "that cannot be packed"
        )
    packed = np.empty(size, np.uint8)
    load_library().shearling_pack(*arguments, packed.ctypes.data)
    return packed


def unpack_matrix(packed: Bytes) -> Matrix:
    """What `packed_format.unpack` does.

    Raises:
        ArtefactCorrupt: it is not a packed matrix.
    """
    packed = np.ascontiguousarray(packed, np.uint8)
    header = read_header(packed)
    values = np.empty((header.rows, header.columns), header.value_type.array_type)
    scales = (
        None
        if header.scale_type is ScaleType.NONE
        else np.empty((header.rows, header.groups), header.scale_type.array_type)
    )
    _refuse(
        load_library().shearling_unpack(
            packed.ctypes.data, packed.size, values.ctypes.data, None if scales is None else scales.ctypes.data
        )
    )
    return Matrix(values, header.value_type, scales, header.group_size)


@functools.cache
def _has_library() -> bool:
    try:
        load_library()
    except EnvironmentFault as fault:
        log.print(f"weights are packed by numpy, which takes many times as long: {fault.message}")
        return False
    return True


def pack_anywhere(matrix: Matrix, encoding: Encoding = Encoding.BITMASK) -> Bytes:
    """`pack_matrix`; where the library cannot be built, as with ONNX Runtime alone, the same bytes from numpy.

    Raises:
        ShapeMismatch, ModelUnsupported: see `pack_matrix`.
        NonFiniteWeights: numpy found NaN or infinity.
    """
    return pack_matrix(matrix, encoding) if _has_library() else pack(matrix, encoding)


def unpack_anywhere(packed: Bytes) -> Matrix:
    """`unpack_matrix`; where the library cannot be built, the same from numpy.

    Raises:
        ArtefactCorrupt: it is not a packed matrix.
    """
    return unpack_matrix(packed) if _has_library() else unpack(packed)


def expand_matrix(packed: Bytes) -> Bytes:
    """The same matrix in the dense encoding: what `pack_matrix` makes of its weights.

    Raises:
        ArtefactCorrupt: it is not a packed matrix.
    """
    packed = np.ascontiguousarray(packed, np.uint8)
    validate(packed)
    expanded = np.empty(load_library().shearling_expand(packed.ctypes.data, packed.size, None), np.uint8)
    load_library().shearling_expand(packed.ctypes.data, packed.size, expanded.ctypes.data)
    return expanded


def held_bytes(packed: Bytes, *, kernels: Kernels | None = None) -> int:
    """Memory of a matrix where a model is loaded: more or less than it is packed where the kernels multiply another
    form of it faster.

    Args:
        packed: the matrix.
        kernels: an instruction set; default the best of this processor.

    Raises:
        ArtefactCorrupt: it is not a packed matrix, or this processor lacks the instruction set.
    """
    validate(packed)
    chosen = None if kernels is None else kernels.encode()
    held: int = load_library().shearling_held_bytes(packed.ctypes.data, packed.size, chosen)
    if held == 0:
        raise ArtefactCorrupt(f"this processor cannot run the kernels {kernels}")
    return held


def multiply(
    packed: Bytes,
    x: Floats,
    *,
    bias: Floats | None = None,
    exact: bool = False,
    checked: bool = False,
    held: bool = False,
    kernels: Kernels | None = None,
) -> Floats:
    """The product y = x W^T + bias.

    Args:
        packed: W, [rows, columns].
        x: [count, columns].
        bias: [rows].
        exact: activations stay f32; else integer weights multiply them in fixed point (see `packed_format`).
        checked: the matrix passed `validate` before.
        held: of the matrix as these kernels hold it where a model is loaded, which changes no bit of the result.
        kernels: an instruction set; default the best of this processor.

    Returns:
        [count, rows].

    Raises:
        ShapeMismatch: x or bias do not fit.
        ArtefactCorrupt: the matrix is not one, or this processor lacks the instruction set.
    """
    header = read_header(packed)
    x = np.ascontiguousarray(x, np.float32)
    if x.ndim != 2 or x.shape[1] != header.columns or (bias is not None and bias.shape != (header.rows,)):
        raise ShapeMismatch(f"activations of {list(x.shape)} do not fit a matrix of [{header.rows}, {header.columns}]")
    addend = None if bias is None else np.ascontiguousarray(bias, np.float32)
    y = np.empty((x.shape[0], header.rows), np.float32)
    address = None if addend is None else addend.ctypes.data
    chosen = None if kernels is None else kernels.encode()
    sizes = (packed.ctypes.data, packed.size, x.ctypes.data, *x.shape, address, y.ctypes.data, header.rows)
    _refuse(load_library().shearling_matmul(*sizes, exact, checked, held, chosen))
    return y


def _refuse(fault: bytes | None) -> None:
    if fault is not None:
        raise ArtefactCorrupt(f"a packed matrix is refused: {fault.decode()}")
