"""Which matrices four bits hurt most: for mixed precision.

What rounding a matrix from W to V does to the model's loss is to second order ½ Σ F (W - V)², F the diagonal of the
Fisher information, which squared gradients of the loss estimate. One backward over a few windows serves all matrices,
and no gradient is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from shearling.quantization.rounding import Rounded

WINDOWS = 16
"""That gradients are taken on, one after another: a sum of gradients would cancel."""


def harms(
    model: nn.Module, matrices: Mapping[str, Rounded], windows: Sequence[Tensor], *, bf16: bool
) -> dict[str, float]:
    """How much rounding each matrix costs, up to a factor that all share.

    Args:
        model: float32, eval mode, as it was before; comes back as it was. A decoder, or a classifier whose answers'
            own likelihood is the loss.
        matrices: module path -> what its weight is rounded to, of which one at a time is held in float32.
        windows: token ids [tokens].
        bf16: whether to autocast to it.
    """
    found = dict.fromkeys(matrices, 0.0)
    handles = []
    parameters: list[Any] = [model.get_submodule(path).weight for path in matrices]
    try:
        for parameter, (path, rounded) in zip(parameters, matrices.items(), strict=True):
            parameter.requires_grad_(True)
            handles.append(parameter.register_post_accumulate_grad_hook(_adder(found, path, rounded)))
        for window in windows[:WINDOWS]:
            with torch.autocast(window.device.type, torch.bfloat16, enabled=bf16):
                logits: Any = model(input_ids=window[None].to(parameters[0].device)).logits.float()
            loss = _likelihood(logits, window)
            loss.backward()
    finally:
        for handle in handles:
            handle.remove()
        for parameter in parameters:
            parameter.requires_grad_(False)
    return found


def most_harmed(harm: Mapping[str, float], sizes: Mapping[str, int], *, share: float) -> set[str]:
    """The matrices to spare, most harm a weight first, until they have that share of all weights.

    Args:
        harm: module path -> as `harms` found it.
        sizes: module path -> weights.
        share: 0 to 1; the last matrix that fits is the last that is spared.
    """
    room = share * sum(sizes.values())
    spared: set[str] = set()
    for path in sorted(harm, key=lambda item: (-harm[item] / sizes[item], item)):
        if sizes[path] <= room:
            spared.add(path)
            room -= sizes[path]
    return spared


def _adder(found: dict[str, float], path: str, rounded: Rounded) -> Callable[[Any], None]:
    def add(parameter: Any) -> None:
        found[path] += float((parameter.grad * (parameter.detach() - rounded.weight)).square().sum())
        parameter.grad = None

    return add


def _likelihood(logits: Tensor, window: Tensor) -> Tensor:
    """Of the next tokens, or of a classifier's own answer, in nats."""
    from torch.nn import functional as F

    if logits.ndim == 3:
        return F.cross_entropy(logits[0, :-1], window[1:].to(logits.device), reduction="sum")
    return F.cross_entropy(logits, logits.argmax(-1), reduction="sum")
