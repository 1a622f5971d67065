"""The sparsity that an export claims, counted by NNCF rather than by us.

`nncf.prune` registers a binary mask on every weight in scope, keeping what is larger than a threshold; with a ratio
below the real sparsity that threshold is zero, so its masks are the nonzero pattern itself. `nncf.pruning_statistic`
then counts. Both are NNCF's public interface; reading back single masks (to name the entry that differs) is not.

NNCF counts some modules at a time, in a model of nothing else: what it wraps stays in reference cycles of its own, and
a whole model with its masks would be held until Python happens to collect them.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from export.packing.linear_graph import module_path
from shearling.elastic.mask import Masks
from shearling.errors import ModelUnsupported, SparsityLost
from shearling.kernel.packed_format import Matrix
from shearling.strict_json import Document

WEIGHTS_TOGETHER = 2**24
"""That NNCF counts at a time; a larger matrix goes alone."""


class ModuleCertificate(Document):
    """NNCF's count for one weight.

    Attributes:
        zeros: entries that NNCF counts as pruned.
        accidental: of them, entries that our mask keeps: zeros of the pretrained model, or updates that cancelled.
    """

    name: str
    weights: int
    zeros: int
    accidental: int
    sparsity: float


class SparsityCertificate(Document):
    """NNCF's count over all pruned modules, of which there may be none; `sparsity_model` is its share of every
    parameter.
    """

    nncf: str
    modules: int
    weights: int
    zeros: int
    accidental: int
    sparsity: float
    sparsity_model: float
    by_module: tuple[ModuleCertificate, ...]


def certify_sparsity(model: nn.Module, masks: Masks) -> SparsityCertificate:
    """Let NNCF count the zeros of the pruned modules, and hold its count against the masks.

    Args:
        model: merged or frozen; not modified.
        masks: module path -> mask, True = kept; modules that prune nothing are left out of the count.

    Returns:
        The certificate; embeddings, head and every module without a mask are ignored.

    Raises:
        SparsityLost: NNCF counts fewer zeros than a mask prunes, or another number than we do; names the module.
        ModelUnsupported: NNCF does not find one of the modules in the model's graph.
    """
    paths = {name: _weight_path(model, name) for name in masks}
    reads = {path: partial(_weight, model, path) for path in paths.values()}
    return _certify(reads, {paths[name]: mask for name, mask in masks.items()}, parameters=_parameters(model))


def certify_integers(integers: Mapping[str, Matrix], model: nn.Module, masks: Masks) -> SparsityCertificate | None:
    """Let NNCF count the zeros of pruned modules once more, in the numbers that their integers stand for.

    Args:
        integers: module path -> its weight.
        model: that they were made of.
        masks: see `certify_sparsity`.

    Returns:
        The certificate, in which weights that were rounded to zero are accidental; None where no module with a mask has
        integers.

    Raises:
        SparsityLost, ModelUnsupported: see `certify_sparsity`.
    """
    found = {path: mask for path, mask in masks.items() if module_path(path) in integers}
    reads = {path: partial(_number, integers[module_path(path)]) for path in found}
    return _certify(reads, found, parameters=_parameters(model)) if found else None


def _certify(reads: Mapping[str, Callable[[], Tensor]], masks: Masks, *, parameters: int) -> SparsityCertificate:
    """Certify weights that are read when they are counted."""
    import importlib.metadata

    shares = {path: 1 - int(mask.count_nonzero()) / mask.numel() for path, mask in masks.items()}
    pruned = {path: masks[path] for path, share in shares.items() if share}
    least = min((shares[path] for path in pruned), default=0.0)
    certified: list[ModuleCertificate] = []
    for group in _groups(pruned):
        weights = {path: reads[path]() for path in group}
        for path, weight in weights.items():
            _check_zeros(path, weight, pruned[path])
        ratios = _count(weights, ratio=least / 2)
        certified += [_certify_module(path, weight, pruned[path], ratios[path]) for path, weight in weights.items()]
    count, zeros = sum(item.weights for item in certified), sum(item.zeros for item in certified)
    return SparsityCertificate(
        nncf=importlib.metadata.version("nncf"),
        modules=len(certified),
        weights=count,
        zeros=zeros,
        accidental=sum(item.accidental for item in certified),
        sparsity=zeros / count if count else 0.0,
        sparsity_model=zeros / parameters,
        by_module=tuple(certified),
    )


def _weight_path(model: nn.Module, path: str) -> str:
    # Where ranks stay apart the frozen weights are what is sparse, one module further down.
    return f"{path}.base" if hasattr(model.get_submodule(path), "base") else path


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _weight(model: nn.Module, path: str) -> Tensor:
    module: Any = model.get_submodule(path)
    weight: Tensor = module.weight.detach()
    return weight


def _number(matrix: Matrix) -> Tensor:
    """[out, in] float32."""
    scales = np.repeat(np.asarray(matrix.scales, np.float32), matrix.group_size, axis=1)
    return torch.from_numpy(matrix.values * scales)


def _check_zeros(name: str, weight: Tensor, mask: Tensor) -> None:
    revived = int(weight[~mask].count_nonzero())
    if revived:
        raise SparsityLost(f"{revived} pruned weights are not zero", where=name)


def _groups(masks: Masks) -> Iterator[list[str]]:
    """All modules in their order, as many together as `WEIGHTS_TOGETHER` allows; no group where there are none."""
    group: list[str] = []
    for path, mask in masks.items():
        if group and sum(masks[other].numel() for other in group) + mask.numel() > WEIGHTS_TOGETHER:
            yield group
            group = []
        group.append(path)
    if group:
        yield group


class _Products(nn.Module):
    """Linear layers side by side, and nothing else."""

    def __init__(self, weights: list[Tensor]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(weight, requires_grad=False) for weight in weights)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [nn.functional.linear(x[:, : weight.shape[1]], weight) for weight in self.weights]


def _count(modules: Mapping[str, Tensor], *, ratio: float) -> dict[str, float]:
    """Module path -> the share of its weights that NNCF counts as pruned."""
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)
    # In float32, where every number of the halved types has its own.
    weights = [weight.float() for weight in modules.values()]
    registered = nncf.prune(
        _Products(weights),
        mode=nncf.PruneMode.UNSTRUCTURED_MAGNITUDE_LOCAL,
        ratio=ratio,
        examples_inputs={"x": torch.zeros(1, max(weight.shape[1] for weight in weights))},
    )
    found = {
        int(tensor.tensor_name.rpartition(".")[2]): float(tensor.pruned_ratio)
        for tensor in nncf.pruning_statistic(registered).pruned_tensors
    }
    del registered, weights
    gc.collect()
    ratios = {path: found[place] for place, path in enumerate(modules) if place in found}
    missing = sorted(modules.keys() - ratios.keys())
    if missing:
        raise ModelUnsupported(f"NNCF and the masks disagree on the module {missing[0]}", where="nncf.prune")
    return ratios


def _certify_module(name: str, weight: Any, mask: Any, ratio: float) -> ModuleCertificate:
    zeros = round(ratio * weight.numel())
    ours = int((weight == 0).sum())
    if zeros != ours:
        raise SparsityLost(f"NNCF counts {zeros} zeros, the weight has {ours}", where=name)
    return ModuleCertificate(
        name=name,
        weights=weight.numel(),
        zeros=zeros,
        accidental=ours - int((~mask).sum()),
        sparsity=zeros / weight.numel(),
    )
