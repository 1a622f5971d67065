"""The grids of a whole model on disk: stored with the super-adapter, bound to the weights that they were made for, and
applied to them whenever the super-network is assembled.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shearling.errors import ArtefactCorrupt, ArtefactMismatch, ArtefactMissing

if TYPE_CHECKING:
    from torch import Tensor, nn

    from shearling.quantization.rounding import Rounded

GRID_FILE = "grid.safetensors"
CODES, SCALES = "codes", "scales"


@dataclass(frozen=True)
class WeightGrids:
    """The grid of every linear layer of a model.

    Attributes:
        bits: of an integer.
        base_weights_sha256: of the frozen model, by `shearling.model.checkpoint.hash_weights`.
        matrices: module path -> the frozen weight on its grid.
    """

    bits: int
    base_weights_sha256: str
    matrices: Mapping[str, Rounded]


def apply_grids(model: nn.Module, grids: WeightGrids, *, trained: Container[str]) -> None:
    """Put the frozen weights of a plain model on their grids, in place.

    Args:
        model: with `nn.Linear` modules at the grids' paths.
        grids: of this model.
        trained: the modules whose update is rounded with them: these are drawn into their cells, all others are on
            the grid.

    Raises:
        ArtefactMismatch: a grid has no linear layer here, or another shape.
    """
    import torch

    from shearling.elastic.weight_grid import drawn_into_cells

    modules = dict(model.named_modules())
    for path, rounded in grids.matrices.items():
        weight = getattr(modules.get(path), "weight", None)
        if weight is None or weight.shape != rounded.codes.shape:
            raise ArtefactMismatch("the grid has no linear layer of its shape in this model", where=path)
        with torch.no_grad():
            weight.copy_(drawn_into_cells(weight, rounded) if path in trained else rounded.weight)


def save_grids(path: Path, grids: WeightGrids) -> None:
    """Write grids as safetensors: integers as int8, scales as float16, facts in the metadata."""
    import torch
    from safetensors.torch import save_file

    tensors = {}
    for name, rounded in grids.matrices.items():
        tensors[f"{name}.{CODES}"] = rounded.codes.to(torch.int8).contiguous()
        tensors[f"{name}.{SCALES}"] = rounded.scales.half().contiguous()
    save_file(tensors, path, metadata={"grid": f"base_weights_sha256={grids.base_weights_sha256}|bits={grids.bits}"})


def load_grids(path: Path, *, base: Path) -> WeightGrids:
    """Read what `save_grids` wrote.

    Args:
        path: the file.
        base: the frozen model that they are to be applied to.

    Raises:
        ArtefactMissing: no such file.
        ArtefactCorrupt: not grids, or a scale is zero or not finite, or an integer is outside its range.
        ArtefactMismatch: they were made for other weights.
    """
    from safetensors import SafetensorError, safe_open

    from shearling.model.checkpoint import hash_weights
    from shearling.quantization.rounding import LIMITS

    if not path.is_file():
        raise ArtefactMissing("no grid here", where=path)
    try:
        with safe_open(path, framework="pt") as file:
            noted = (file.metadata() or {}).get("grid", "")
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    except SafetensorError as error:
        raise ArtefactCorrupt(f"not a readable grid: {error}", where=path) from None
    facts = dict(item.split("=", 1) for item in noted.split("|") if "=" in item)
    if facts.keys() != {"base_weights_sha256", "bits"} or facts["bits"] not in map(str, LIMITS):
        raise ArtefactCorrupt("its metadata does not name the base and the bits", where=path)
    bits = int(facts["bits"])
    names = sorted({name.rpartition(".")[0] for name in tensors})
    matrices = {name: _read(tensors, name, bits=bits, where=f"{path}: {name}") for name in names}
    found = hash_weights(base)
    if found != facts["base_weights_sha256"]:
        raise ArtefactMismatch(
            f"the grid was made for other weights: {facts['base_weights_sha256'][:12]}… expected, {found[:12]}… found",
            where=path,
            remedy="Put back the model that the super-adapter was trained on, or train again",
        )
    return WeightGrids(bits, found, matrices)


def _read(tensors: Mapping[str, Tensor], name: str, *, bits: int, where: str) -> Rounded:
    import torch

    from shearling.quantization.rounding import LIMITS, Rounded

    codes, scales = tensors.get(f"{name}.{CODES}"), tensors.get(f"{name}.{SCALES}")
    if codes is None or scales is None or codes.ndim != 2 or scales.ndim != 2 or len(codes) != len(scales):
        raise ArtefactCorrupt("integers and scales do not fit together", where=where)
    if codes.dtype != torch.int8:
        raise ArtefactCorrupt(f"integers of {codes.dtype}", where=where)
    if scales.shape[1] == 0 or codes.shape[1] % scales.shape[1]:
        raise ArtefactCorrupt(f"{scales.shape[1]} groups do not divide {codes.shape[1]} columns", where=where)
    if not (scales.isfinite().all() and (scales != 0).all()):
        raise ArtefactCorrupt("a scale is zero or not finite", where=where)
    least, most = LIMITS[bits]
    if codes.min() < least or codes.max() > most:
        raise ArtefactCorrupt(f"an integer is outside {least}..{most}", where=where)
    return Rounded(codes, scales.float(), codes.shape[1] // scales.shape[1], bits)
