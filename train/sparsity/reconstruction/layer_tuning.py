"""The kept weights of one transformer layer, tuned together until its outputs are those of the dense layer (EBFT, arXiv
2402.12419).

Matrix by matrix, errors add up and the nonlinearity between them is not seen; a window that holds it recovers more ("A
free lunch", arXiv 2510.14444). The layer is given what the pruned layers before it produce, and is to give what the
dense model has there, so that it also makes up for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from shearling.errors import TrainingDiverged
from shearling.evaluation.precision import resolve_precision

if TYPE_CHECKING:
    from torch import Tensor, nn

    from shearling.calibration.propagation import Propagation

BETAS = (0.9, 0.95)
"""Of Adam: a few dozen steps are over before a longer memory would settle."""


def tune_layer(
    layer: nn.Module,
    linears: Mapping[str, nn.Linear],
    masks: Mapping[str, Tensor],
    states: Propagation,
    targets: Sequence[Tensor],
    *,
    epochs: int,
    learning_rate: float,
    seed: int,
) -> None:
    """Tune the linears of a layer, in place, their zeros kept.

    Args:
        layer: pruned.
        linears: of the layer, by path.
        masks: of its linears, True = kept.
        states: standing before the layer.
        targets: of each batch [batch, tokens, width] what the dense model has behind the layer.
        epochs: passes over all batches, an update of Adam each; the rate falls linearly to zero.
        learning_rate: of each matrix as a share of the root mean square of its weights.
        seed: of the order of the batches.

    Raises:
        TrainingDiverged: the tuning diverged.
    """
    import torch

    weights = {path: linear.weight for path, linear in linears.items()}
    rates = [learning_rate * typical_size(weights[path][masks[path]]) for path in weights]
    groups = [{"params": [weight], "lr": rate} for weight, rate in zip(weights.values(), rates, strict=True)]
    scale, device = _added(states, targets), targets[0].device.type
    bf16 = resolve_precision("auto", device=device) == "bf16"
    order = torch.Generator().manual_seed(seed)
    updates, done = epochs * len(targets), 0
    for weight in weights.values():
        weight.requires_grad_(True)
    try:
        optimizer = torch.optim.Adam(groups, betas=BETAS, fused=True)
        for _ in range(epochs):
            for index in torch.randperm(len(targets), generator=order).tolist():
                with torch.autocast(device, torch.bfloat16, enabled=bf16):
                    outputs = states.output(layer, index)
                loss = (outputs.float() - targets[index]).square().mean() / scale
                optimizer.zero_grad()
                loss.backward()
                for path, weight in weights.items():
                    # None for an expert that no token of the batch was routed to.
                    if weight.grad is not None:
                        weight.grad.mul_(masks[path].view(torch.int8))
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * (1 - done / updates)
                optimizer.step()
                done += 1
    finally:
        for weight in weights.values():
            weight.requires_grad_(False)
            weight.grad = None
    if not all(weight.isfinite().all() for weight in weights.values()):
        raise TrainingDiverged(
            "the weights that were tuned hold NaN or infinity",
            where=next(iter(weights)),
            remedy="Lower sparsity.reconstruction.learning_rate",
        )


def typical_size(weights: Tensor) -> float:
    """Root mean square, what a learning rate is a share of; 0 of no weights."""
    return float(weights.float().square().mean().sqrt()) if weights.numel() else 0.0


def _added(states: Propagation, targets: Sequence[Tensor]) -> float:
    """Mean square of what a layer adds to its inputs: the scale of its errors."""
    squares = [
        (target - batch.hidden).float().square().mean().item()
        for batch, target in zip(states.batches, targets, strict=True)
    ]
    return max(sum(squares) / len(squares), 1e-30)


def output_error(layer: nn.Module, states: Propagation, targets: Sequence[Tensor]) -> float:
    """Squared distance of a layer's outputs from the targets, as a share of what the layer adds to its inputs."""
    import torch

    with torch.no_grad():
        errors = [
            (states.output(layer, index).float() - target).square().mean().item()
            for index, target in enumerate(targets)
        ]
    return sum(errors) / len(errors) / _added(states, targets)
