"""The sparsity that an export claims, counted by NNCF rather than by us.

`nncf.prune` registers a binary mask on every weight in scope, keeping what is larger than a threshold; with a ratio
below
the real sparsity that threshold is zero, so its masks are the nonzero pattern itself. `nncf.pruning_statistic` then
counts. Both are NNCF's public interface; reading back single masks (to name the entry that differs) is not.
"""

from __future__ import annotations

import copy
import logging
import re
from typing import TYPE_CHECKING, Any

from shearling.elastic.mask import Masks
from shearling.errors import ModelUnsupported, SparsityLost
from shearling.strict_json import Document

if TYPE_CHECKING:
    from torch import nn


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
    """NNCF's count over all pruned modules; `sparsity_model` is its share of every parameter."""

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
    import importlib.metadata

    pruned = {_weight_path(model, name): mask for name, mask in masks.items() if not bool(mask.all())}
    if not pruned:
        raise SparsityLost("no mask prunes anything", where="certificate")
    _check_zeros(model, pruned)
    statistic = _count(model, pruned)
    found = {tensor.tensor_name.removesuffix(".weight"): tensor for tensor in statistic.pruned_tensors}
    if found.keys() != pruned.keys():
        raise ModelUnsupported(
            f"NNCF and the masks disagree on the module {sorted(found.keys() ^ pruned.keys())[0]}", where="nncf.prune"
        )
    modules = dict(model.named_modules())
    certified = tuple(
        _certify_module(name, modules[name].weight, mask, found[name].pruned_ratio) for name, mask in pruned.items()
    )
    weights, zeros = sum(item.weights for item in certified), sum(item.zeros for item in certified)
    return SparsityCertificate(
        nncf=importlib.metadata.version("nncf"),
        modules=len(certified),
        weights=weights,
        zeros=zeros,
        accidental=sum(item.accidental for item in certified),
        sparsity=zeros / weights,
        sparsity_model=float(statistic.global_pruning_ratio),
        by_module=certified,
    )


def _weight_path(model: nn.Module, path: str) -> str:
    # Where ranks stay apart the frozen weights are what is sparse, one module further down.
    return f"{path}.base" if hasattr(model.get_submodule(path), "base") else path


def _check_zeros(model: nn.Module, masks: Masks) -> None:
    modules = dict(model.named_modules())
    for name, mask in masks.items():
        weight: Any = modules[name].weight
        revived = int(weight[~mask].count_nonzero())
        if revived:
            raise SparsityLost(f"{revived} pruned weights are not zero", where=name)


def _count(model: nn.Module, masks: Masks) -> Any:
    import nncf
    import torch

    logging.getLogger("nncf").setLevel(logging.ERROR)
    subject = copy.deepcopy(model)
    subject.config.use_cache = False  # type: ignore[union-attr] # a PreTrainedModel
    least = min(1 - float(mask.float().mean()) for mask in masks.values())
    registered = nncf.prune(
        subject,
        mode=nncf.PruneMode.UNSTRUCTURED_MAGNITUDE_LOCAL,
        ratio=least / 2,
        ignored_scope=nncf.IgnoredScope(patterns=_ignored(model, masks), validate=False),
        examples_inputs={"input_ids": torch.ones(1, 4, dtype=torch.int64)},
    )
    return nncf.pruning_statistic(registered)


def _ignored(model: nn.Module, masks: Masks) -> list[str]:
    """One pattern for every weighted module outside the masks; NNCF separates path parts by dots or by slashes."""
    paths = [
        path
        for path, module in model.named_modules()
        if path not in masks and getattr(module, "weight", None) is not None
    ]
    return [f"^{re.escape(path).replace(re.escape('.'), '[./]')}[./].*" for path in paths]


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
