"""Sparsity masks: which weights were kept, one bit each.

A mask is a bool tensor [out, in], True = kept. In `mask.safetensors` each is packed into bytes, eight weights a byte,
least significant bit first, row-major over the flattened tensor; shapes stand in the file's metadata. The mask is
stored although the zeros of the weights show it: a conversion of the dtype may add zeros (underflow), and a merge must
use the mask that training used.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from shearling.errors import ArtefactCorrupt, ArtefactMismatch, ArtefactMissing, DocumentInvalid
from shearling.strict_json import parse_json

if TYPE_CHECKING:
    from torch import Tensor, nn

PACKING = "uint8-bits-lsb-first-row-major"
MASK_FILE = "mask.safetensors"

Masks = Mapping[str, "Tensor"]
"""Module path (such as `model.layers.0.mlp.up_proj`) -> bool [out, in]."""


def pack_mask(mask: Tensor) -> Tensor:
    """Pack a bool tensor of n elements into uint8 [ceil(n / 8)]; padding bits are zero."""
    import torch

    return torch.from_numpy(np.packbits(mask.cpu().flatten().numpy(), bitorder="little"))


def unpack_mask(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Inverse of `pack_mask`.

    Args:
        packed: uint8 [ceil(n / 8)] with n the product of `shape`.
        shape: of the mask.

    Raises:
        ArtefactCorrupt: the length does not fit the shape, or a padding bit is set.
    """
    import torch

    count = int(torch.Size(shape).numel())
    if packed.dtype != torch.uint8 or packed.numel() != -(-count // 8):
        raise ArtefactCorrupt(f"{packed.numel()} bytes of {packed.dtype} cannot be a mask of shape {list(shape)}")
    if count % 8 and int(packed[-1]) >> count % 8:
        raise ArtefactCorrupt("padding bits of a packed mask are set")
    if packed.is_cuda:
        bits = (packed.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8, device=packed.device)) & 1
        return bits.flatten()[:count].to(torch.bool).reshape(shape)
    found = np.unpackbits(packed.numpy(), count=count, bitorder="little")
    return torch.from_numpy(found).view(torch.bool).reshape(shape)


class PackedMasks(Mapping[str, "Tensor"]):
    """Masks that are held as bits: each is unpacked when it is asked for, and packed when it is added."""

    def __init__(self) -> None:
        self._packed: dict[str, tuple[Tensor, tuple[int, ...]]] = {}

    @classmethod
    def of(cls, masks: Masks) -> PackedMasks:
        """These masks; what is added later is added to what is returned alone."""
        found = cls()
        if isinstance(masks, PackedMasks):
            found._packed |= masks._packed
        else:
            found.add(masks)
        return found

    def __getitem__(self, name: str) -> Tensor:
        return unpack_mask(*self._packed[name])

    def __contains__(self, name: object) -> bool:
        # Without it every question would unpack a mask.
        return name in self._packed

    def __iter__(self) -> Iterator[str]:
        return iter(self._packed)

    def __len__(self) -> int:
        return len(self._packed)

    def add(self, masks: Masks) -> None:
        """Hold these as well."""
        self._packed |= {name: (pack_mask(mask), tuple(mask.shape)) for name, mask in masks.items()}

    def add_packed(self, name: str, packed: Tensor, shape: tuple[int, ...]) -> None:
        """Hold one that is packed already; errors as for `unpack_mask`."""
        unpack_mask(packed, shape)
        self._packed[name] = (packed, shape)

    def packed(self, name: str) -> Tensor:
        """uint8 [ceil(n / 8)], see `pack_mask`."""
        return self._packed[name][0]

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the mask."""
        return self._packed[name][1]


def save_masks(path: Path, masks: Masks) -> None:
    """Write masks to a safetensors file."""
    from safetensors.torch import save_file

    packed = PackedMasks.of(masks)
    shapes = {name: list(packed.shape(name)) for name in packed}
    tensors = {name: packed.packed(name) for name in packed}
    save_file(tensors, path, metadata={"packing": PACKING, "shapes": json.dumps(shapes)})
    _sort_metadata(path)


def _sort_metadata(path: Path) -> None:
    """Put a safetensors file's metadata in order: the library writes them in one that changes from call to call."""
    with path.open("r+b") as stream:
        size_bytes = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size_bytes))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        sorted_header = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        stream.seek(8)
        # The same entries fill the same bytes; the format allows spaces at the end.
        stream.write(sorted_header.ljust(size_bytes))


def load_masks(path: Path) -> PackedMasks:
    """Read what `save_masks` wrote.

    Raises:
        ArtefactMissing: no such file.
        ArtefactCorrupt: not a mask file, or a mask does not fit its shape.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ArtefactMissing("no mask file here", where=path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("packing") != PACKING:
                raise ArtefactCorrupt(f"packing is {metadata.get('packing')!r}, expected {PACKING!r}", where=path)
            shapes = _parse_shapes(metadata.get("shapes", "{}"), where=path)
            if set(shapes) != set(file.keys()):
                raise ArtefactCorrupt("shapes and tensors name different modules", where=path)
            masks = PackedMasks()
            for name in sorted(shapes):
                masks.add_packed(name, file.get_tensor(name).clone(), shapes[name])
            return masks
    except SafetensorError as error:
        raise ArtefactCorrupt(f"not a readable mask file: {error}", where=path) from None


def _parse_shapes(text: str, *, where: Path) -> dict[str, tuple[int, int]]:
    try:
        shapes = parse_json(text.encode(), where=where)
    except DocumentInvalid as error:
        raise ArtefactCorrupt(f"the shapes of a mask file: {error.message}", where=where) from None
    for name, shape in shapes.items():
        if not (isinstance(shape, list) and len(shape) == 2 and all(type(size) is int and size > 0 for size in shape)):
            raise ArtefactCorrupt(f"{shape!r} is not the shape of a mask", where=f"{where}: {name}")
    return {name: (shape[0], shape[1]) for name, shape in shapes.items()}


def check_masked_zeros(model: nn.Module, masks: Masks) -> None:
    """Check that every pruned weight of `model` is exactly zero.

    Raises:
        ArtefactMismatch: a module is missing, has another shape, or holds a nonzero where the mask says pruned.
    """
    modules = dict(model.named_modules())
    for name, mask in masks.items():
        weight = getattr(modules.get(name), "weight", None)
        if weight is None:
            raise ArtefactMismatch("the mask names a module that the model lacks", where=name)
        if weight.shape != mask.shape:
            raise ArtefactMismatch(f"weight is {list(weight.shape)}, mask is {list(mask.shape)}", where=name)
        revived = int(((weight != 0) & ~mask).count_nonzero())
        if revived:
            raise ArtefactMismatch(
                f"{revived} pruned entries are nonzero", where=name, remedy="This mask was made for other weights"
            )


def count_pruned(masks: Masks) -> dict[str, int]:
    """Number of pruned weights per module."""
    return {name: int(mask.numel() - mask.count_nonzero()) for name, mask in masks.items()}
