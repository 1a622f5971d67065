"""Wanda by brute force in float64, written from the paper and apart from the code under test.

For each decoder layer: run the whole model, pruned so far, on every sample; concatenate everything that enters each
linear of the layer; take the full column norms; sort every row.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Choose = Callable[[Tensor], Tensor]
"""Scores [out, in] -> bool, True = kept."""


def lowest_of_each_row(ratio: float) -> Choose:
    def choose(scores: Tensor) -> Tensor:
        keep = torch.ones_like(scores, dtype=torch.bool)
        count = int(scores.shape[1] * ratio)
        for row, values in enumerate(scores.tolist()):
            order = sorted(range(len(values)), key=lambda column: (values[column], column))
            keep[row, order[:count]] = False
        return keep

    return choose


def lowest_of_each_block(zeros: int, block: int) -> Choose:
    def choose(scores: Tensor) -> Tensor:
        keep = torch.ones_like(scores, dtype=torch.bool)
        for row, values in enumerate(scores.tolist()):
            for start in range(0, len(values), block):
                order = sorted(range(start, start + block), key=lambda column: (values[column], column))
                keep[row, order[:zeros]] = False
        return keep

    return choose


def wanda_reference(
    model: nn.Module,
    layers: Sequence[str],
    linears: Sequence[str],
    samples: Sequence[Tensor],
    choose: Choose,
    *,
    propagate: bool = True,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Masks and float64 scores by module path; `propagate=False` measures every layer on the dense model."""
    pruned = copy.deepcopy(model).double().eval()
    dense = copy.deepcopy(pruned)
    masks, scores = {}, {}
    for layer in layers:
        paths = [f"{layer}.{name}" for name in linears]
        entering = _record_inputs(pruned if propagate else dense, paths, samples)
        for path in paths:
            weight = pruned.get_submodule(path).weight.data
            scores[path] = weight.abs() * torch.linalg.vector_norm(torch.cat(entering[path]), dim=0)
            masks[path] = choose(scores[path])
        for path in paths:
            pruned.get_submodule(path).weight.data[~masks[path]] = 0
    return masks, scores


def assert_same_masks(found: dict[str, Tensor], expected: dict[str, Tensor], scores: dict[str, Tensor]) -> None:
    """Equal, except where float32 cannot tell two scores of a row apart."""
    assert found.keys() == expected.keys()
    for path, mask in found.items():
        for row in (mask != expected[path]).any(dim=1).nonzero().flatten().tolist():
            swapped = scores[path][row][mask[row] != expected[path][row]]
            assert (swapped.max() - swapped.min()) <= 1e-5 * swapped.max(), f"{path} row {row}"


def _record_inputs(model: nn.Module, paths: Sequence[str], samples: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    entering: dict[str, list[Tensor]] = {path: [] for path in paths}

    def record(path: str) -> Any:
        return lambda _module, inputs: entering[path].append(inputs[0].detach().reshape(-1, inputs[0].shape[-1]))

    handles = [model.get_submodule(path).register_forward_pre_hook(record(path)) for path in paths]
    with torch.no_grad():
        for sample in samples:
            model(input_ids=sample[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return entering
