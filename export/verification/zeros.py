"""Zeros counted in the files themselves, weight by weight, against the mask.

A weight is zero where its stored number means zero: the number 0, of either sign, in a float format or a symmetric
integer format, and the midpoint (8 or 128) in the unsigned blocks of ONNX Runtime's MatMulNBits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from export.packing.linear_graph import module_path
from export.packing.packed_onnx import PACKED
from export.packing.stock_ir import read_packed
from shearling.errors import ArtefactCorrupt, ModelUnsupported, SparsityLost
from shearling.kernel.bundle import OPERATORS
from shearling.kernel.library import unpack_anywhere
from shearling.kernel.openvino_extension import core_for
from shearling.kernel.packed_format import Bytes, Matrix, ValueType
from shearling.model.weight_shards import StoredWeights
from shearling.registry.number_formats import NUMBER_FORMATS
from shearling.strict_json import Document

if TYPE_CHECKING:
    from shearling.elastic.mask import Masks

FoundZeros = Iterator[tuple[str, npt.NDArray[np.bool_]]]
Zeros = Mapping[str, npt.NDArray[np.bool_]] | FoundZeros
"""Weight name without `.weight` -> [out, in], True where the stored weight is zero; or both, weight after weight."""


class ZeroCheck(Document):
    """Zeros of one format against the mask, over all pruned modules.

    Attributes:
        pruned: entries that the mask prunes.
        zeros: of them, entries that are exactly zero in the file.
        extra_zeros: zeros among the kept entries.
        by_module: zeros in pruned positions per module.
    """

    format: str
    pruned: int
    zeros: int
    extra_zeros: int
    by_module: dict[str, int]


def check_zeros(name: str, zeros: Zeros, masks: Masks) -> ZeroCheck:
    """Hold the zeros of one file against the masks.

    Args:
        name: of the directory that was read.
        zeros: as one of the readers below found them.
        masks: module path -> mask, True = kept.

    Raises:
        SparsityLost: the file has no weight for a pruned module.
    """
    found: dict[str, tuple[int, int]] = {}
    pruned = 0
    for path, zero in zeros.items() if isinstance(zeros, Mapping) else zeros:
        if path not in masks:
            continue
        kept = masks[path].numpy()
        counted = int(zero[~kept].sum()), int(zero[kept].sum())
        pruned += 0 if path in found else kept.size - int(kept.sum())
        # Of a weight that a file holds twice, the one that lost more.
        found[path] = min(found.get(path, counted), counted)
    missing = sorted(masks.keys() - found.keys())
    if missing:
        raise SparsityLost(
            f"the file holds no weight for {len(missing)} pruned modules, the first is {missing[0]}", where=name
        )
    by_module = {path: found[path][0] for path in masks}
    extra = sum(others for _, others in found.values())
    return ZeroCheck(format=name, pruned=pruned, zeros=sum(by_module.values()), extra_zeros=extra, by_module=by_module)


def read_huggingface(directory: Path, shapes: Mapping[str, tuple[int, ...]]) -> FoundZeros:
    """Zeros of a safetensors checkpoint."""
    stored = StoredWeights(directory)
    for name in stored.tensors:
        if name.removesuffix(".weight") in shapes:
            yield name.removesuffix(".weight"), (stored.read(name) == 0).numpy()


def read_openvino(directory: Path, shapes: Mapping[str, tuple[int, ...]]) -> FoundZeros:
    """Zeros of the weight constants of an IR."""
    xml = directory / "openvino_model.xml"
    model = core_for(xml).read_model(xml)
    for node in model.get_ops():
        path = module_path(node.get_friendly_name())
        if node.get_type_name() in OPERATORS:
            yield from ((module_path(name), _packed_zeros(matrix)) for name, matrix in read_packed(node).items())
        elif node.get_type_name() == "Constant" and path in shapes and not _is_bundle(node):
            yield path, _zero_bits(node).reshape(shapes[path])


def read_onnx(directory: Path, shapes: Mapping[str, tuple[int, ...]]) -> FoundZeros:
    """Zeros of the initializers of an ONNX graph."""
    import onnx_ir

    graph = onnx_ir.load(directory / "model.onnx").graph
    blocks = ("_Q8", "_Q4")
    stored_as = {"", PACKED, *blocks, *(f"_{name}" for name in NUMBER_FORMATS.names())}
    for initializer in graph.initializers.values():
        name, _, storage = str(initializer.name).rpartition(".weight")
        path, tensor = module_path(f"{name}.weight"), initializer.const_value
        if path not in shapes or storage not in stored_as or tensor is None:
            continue
        out, width = shapes[path]
        array = tensor.numpy()
        if storage == PACKED:
            yield path, _packed_zeros(_unpack(array, str(initializer.name)))
        elif storage in blocks:
            yield path, _block_zeros(array, storage).reshape(out, -1)[:, :width]
        else:
            # MatMul keeps [in, out] where the exporter folded the transposition.
            yield path, (array == 0) if array.shape == shapes[path] else (array == 0).T


def _zero_bits(node: Any) -> npt.NDArray[np.bool_]:
    import openvino

    kind = node.get_element_type()
    # Symmetric integers have no zero point: 0 is the number 0 whatever the scale.
    if kind == openvino.Type.i4:
        raw = np.frombuffer(node.data.tobytes(), dtype=np.uint8)
        return np.stack([raw & 0x0F, raw >> 4], axis=-1).reshape(-1) == 0
    if kind == openvino.Type.i8:
        integers: npt.NDArray[np.bool_] = node.data == 0
        return integers
    if kind.is_real():
        # To float32 without underflow: it holds every number of the halved formats.
        reals: npt.NDArray[np.bool_] = node.get_data(dtype=np.float32) == 0
        return reals
    raise ModelUnsupported(
        f"cannot read zeros of weights stored as {kind.get_type_name()}", where=node.get_friendly_name()
    )


def _is_bundle(constant: Any) -> bool:
    return any(reader.get_node().get_type_name() in OPERATORS for reader in constant.output(0).get_target_inputs())


def _unpack(packed: Bytes, name: str) -> Matrix:
    try:
        return unpack_anywhere(packed)
    except ArtefactCorrupt as error:
        raise ArtefactCorrupt(
            f"a packed weight is corrupt: {error.message}", where=name, remedy="Export again"
        ) from None


def _packed_zeros(matrix: Matrix) -> npt.NDArray[np.bool_]:
    # Of the bits of bf16 either zero counts.
    return np.asarray((matrix.values & 0x7FFF if matrix.value_type is ValueType.BF16 else matrix.values) == 0)


def _block_zeros(array: npt.NDArray[Any], storage: str) -> npt.NDArray[np.bool_]:
    if storage == "_Q8":
        return np.asarray(array.view(np.uint8) == 128)
    raw = array.view(np.uint8)
    return np.stack([raw & 0x0F, raw >> 4], axis=-1).reshape(*raw.shape[:-1], -1) == 8
