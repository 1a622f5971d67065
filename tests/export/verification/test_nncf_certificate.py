"""NNCF's count of zeros is held against the masks and against ours: a count that differs is refused, by name."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import nncf
import numpy as np
import pytest
import torch
from torch import nn

from export.verification import nncf_certificate
from export.verification.nncf_certificate import certify_integers, certify_sparsity
from shearling.elastic.mask import Masks
from shearling.errors import ModelUnsupported, SparsityLost
from shearling.kernel.packed_format import Matrix, ValueType
from tests.support.tiny_models import pruned_model

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]  # torch's own, while NNCF traces

Statistic = Callable[[Any], Any]


@pytest.fixture
def pruned() -> tuple[nn.Module, Masks]:
    return pruned_model("llama_tied_gqa")


def falsify(monkeypatch: pytest.MonkeyPatch, change: Callable[[list[Any]], list[Any]]) -> None:
    """Let NNCF say something else of the weights that it counts."""
    counted: Statistic = nncf.pruning_statistic

    def wrong(model: Any) -> Any:
        return SimpleNamespace(pruned_tensors=change(list(counted(model).pruned_tensors)))

    monkeypatch.setattr(nncf, "pruning_statistic", wrong)


def one_more(tensors: list[Any]) -> list[Any]:
    """The last weight with one zero more."""
    last = tensors[-1]
    count = int(np.prod(last.shape))
    more = SimpleNamespace(tensor_name=last.tensor_name, pruned_ratio=last.pruned_ratio + 1 / count)
    return [*tensors[:-1], more]


def test_nncf_counts_what_the_masks_prune_and_what_is_zero_besides(pruned) -> None:
    model, masks = pruned
    path, mask = list(masks.items())[3]
    row, column = mask.nonzero()[0].tolist()
    with torch.no_grad():
        model.get_submodule(path).weight[row, column] = 0.0
    found = certify_sparsity(model, masks)
    expected = sum(int((~mask).sum()) for mask in masks.values()) + 1
    assert (found.modules, found.zeros, found.accidental) == (len(masks), expected, 1)
    assert found.weights == sum(mask.numel() for mask in masks.values())
    assert found.sparsity == found.zeros / found.weights
    assert {item.name: item.accidental for item in found.by_module} == {name: int(name == path) for name in masks}
    for item in found.by_module:
        assert item.zeros == int((~masks[item.name]).sum()) + item.accidental
    # In several models, as larger ones are counted.
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(nncf_certificate, "WEIGHTS_TOGETHER", 5000)
        assert certify_sparsity(model, masks) == found


def test_a_module_that_prunes_nothing_is_not_counted(pruned) -> None:
    model, masks = pruned
    first, *others = masks
    found = certify_sparsity(model, {**masks, first: torch.ones_like(masks[first])})
    assert [item.name for item in found.by_module] == others
    nothing = certify_sparsity(model, {first: torch.ones_like(masks[first])})
    assert (nothing.modules, nothing.zeros, nothing.sparsity) == (0, 0, 0.0)


def test_a_pruned_weight_that_is_not_zero_is_refused_by_name(pruned) -> None:
    model, masks = pruned
    path, mask = list(masks.items())[2]
    row, column = (~mask).nonzero()[0].tolist()
    with torch.no_grad():
        model.get_submodule(path).weight[row, column] = 1e-30
    with pytest.raises(SparsityLost, match="1 pruned weights are not zero") as raised:
        certify_sparsity(model, masks)
    assert (raised.value.where, raised.value.exit_code) == (path, 1)


def test_another_count_of_nncf_is_refused_by_name(pruned, monkeypatch) -> None:
    model, masks = pruned
    falsify(monkeypatch, one_more)
    with pytest.raises(SparsityLost) as raised:
        certify_sparsity(model, masks)
    zeros = int((~masks[str(raised.value.where)]).sum())
    assert raised.value.message == f"NNCF counts {zeros + 1} zeros, the weight has {zeros}"


def test_a_module_that_nncf_does_not_find_is_refused(pruned, monkeypatch) -> None:
    model, masks = pruned
    falsify(monkeypatch, lambda tensors: tensors[1:])
    with pytest.raises(ModelUnsupported, match="NNCF and the masks disagree"):
        certify_sparsity(model, masks)


def integers_of(model: nn.Module, masks: Masks) -> dict[str, Matrix]:
    """To the nearest, one scale for a row."""
    matrices = {}
    for path in masks:
        weight: Any = model.get_submodule(path).weight
        scales = (weight.abs().amax(dim=1, keepdim=True) / 7).detach().half().numpy()
        codes = np.round(weight.detach().numpy() / scales.astype(np.float32)).clip(-8, 7).astype(np.int8)
        matrices[path] = Matrix(codes, ValueType.INT4, scales, weight.shape[1])
    return matrices


def test_nncf_counts_the_integers_as_well(pruned, monkeypatch) -> None:
    model, masks = pruned
    matrices = integers_of(model, masks)
    found = certify_integers(matrices, model, masks)
    assert found is not None
    assert found.modules == len(masks)
    for item in found.by_module:
        # Weights that are rounded to zero are accidental.
        assert (
            item.zeros
            == int((matrices[item.name].values == 0).sum())
            == int((~masks[item.name]).sum()) + (item.accidental)
        )
    assert found.accidental > 0
    # Of matrices that have other formats nothing is said.
    first, *others = masks
    some = certify_integers({path: matrices[path] for path in others}, model, masks)
    assert some is not None
    assert [item.name for item in some.by_module] == others
    assert certify_integers({}, model, masks) is None
    place = tuple((~masks[first]).nonzero()[0].tolist())
    matrices[first].values[place] = 1
    with pytest.raises(SparsityLost, match="1 pruned weights are not zero") as raised:
        certify_integers(matrices, model, masks)
    assert raised.value.where == first
    matrices[first].values[place] = 0
    falsify(monkeypatch, one_more)
    with pytest.raises(SparsityLost, match="NNCF counts"):
        certify_integers(matrices, model, masks)
