"""Pruning a transformer in place, layer by layer, each layer seeing what the pruned layers before it produce."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from shearling.console import progress
from shearling.errors import NonFiniteWeights, RecipeInvalid, ShapeMismatch, ShearlingError
from shearling.model.layers import TransformerLayers, find_layers
from shearling.registry.pruning_methods import PRUNING_METHODS, PruningMethod
from train.sparsity.criteria.criterion import Criterion, Pruned
from train.sparsity.pattern import Pattern, check_fit
from train.sparsity.propagation import capture

if TYPE_CHECKING:
    from torch import Tensor, nn


def sparsify(
    model: nn.Module, calibration: Sequence[Tensor], *, method: str, pattern: Pattern, batch_size: int = 1
) -> dict[str, Tensor]:
    """Prune every linear layer inside the transformer layers of `model`, in place; nothing else is touched.

    A method that needs calibration does, for each transformer layer in turn: (1) forward the calibration text, while
    all its linears watch what enters them, (2) prune them, (3) forward again, so that the next layer sees what the
    pruned one produces. Beyond the model, the hidden states of the calibration text are held, and what the criteria of
    one layer gather.

    Args:
        model: a decoder or a classifier; evaluated in eval mode, in its own dtype.
        calibration: token ids [tokens] of each sample, without padding; unused by methods that need none.
        method: how weights are chosen, a name in PRUNING_METHODS.
        pattern: how many go, and among which.
        batch_size: samples of equal length that run together; changes the speed alone.

    Returns:
        Module path -> mask [out, in], True = kept.

    Raises:
        UsageError: there is no such method.
        RecipeInvalid: the method needs calibration text, and there is none.
        ModelUnsupported: there are no layers that are alike, or their rows cannot have the pattern.
        NonFiniteWeights: the calibration, the scores or new weights hold NaN or infinity.
        ShapeMismatch: the method returned what does not fit the weight.
        ShearlingError: the method pruned otherwise than the pattern.
    """
    entry, transformer = PRUNING_METHODS.get(method, where="sparsity.method"), find_layers(model)
    # Before the first weight changes.
    for path, linear in transformer.linears().items():
        check_fit(pattern, linear.in_features, where=path)
    was_training = model.training
    model.eval()
    try:
        if entry.needs_calibration:
            return _prune_by_layer(model, transformer, calibration, entry, pattern, batch_size=batch_size)
        make = entry.load()
        return {path: _prune(linear, make(), pattern, path) for path, linear in transformer.linears().items()}
    finally:
        model.train(was_training)


def _prune_by_layer(
    model: nn.Module,
    transformer: TransformerLayers,
    calibration: Sequence[Tensor],
    method: PruningMethod,
    pattern: Pattern,
    *,
    batch_size: int,
) -> dict[str, Tensor]:
    if not calibration or any(len(sample) == 0 for sample in calibration):
        raise RecipeInvalid(f"{method.name} needs calibration text, and no empty sample", where="sparsity.calibration")
    make, masks = method.load(), {}
    states = capture(model, transformer, calibration, batch_size=batch_size)
    with progress(f"{method.name}, layer by layer", total=len(transformer.layers)) as advance:
        for index, layer in enumerate(transformer.layers):
            linears = transformer.linears_of(index)
            criteria: dict[str, Criterion] = {path: make() for path in linears}
            states.watch(layer, [(linear, criteria[path].add) for path, linear in linears.items()])
            for path, linear in linears.items():
                # Popped, so that what it gathered is freed before the next one works.
                masks[path] = _prune(linear, criteria.pop(path), pattern, path)
            if index + 1 < len(transformer.layers):
                states.advance(layer)
            advance()
    return masks


def _prune(linear: nn.Linear, criterion: Criterion, pattern: Pattern, path: str) -> Tensor:
    import torch

    with torch.no_grad():
        pruned = criterion.prune(linear.weight.detach(), pattern, where=path)
        _check(pruned, linear, where=path)
        _check_zeros(pruned.mask, pattern, where=path)
        if pruned.weight is not None:
            linear.weight.copy_(pruned.weight)
        linear.weight.masked_fill_(~pruned.mask, 0)
    return pruned.mask


def _check(pruned: Pruned, linear: nn.Linear, *, where: str) -> None:
    """A criterion may come from another package: what does not fit would be broadcast."""
    import torch

    shape, mask, weight = linear.weight.shape, pruned.mask, pruned.weight
    if mask.shape != shape or mask.dtype != torch.bool:
        raise ShapeMismatch(
            f"the pruning method returned a mask {list(mask.shape)} of {mask.dtype}, expected {list(shape)} of bool",
            where=where,
        )
    if weight is not None and weight.shape != shape:
        raise ShapeMismatch(
            f"the pruning method returned weights {list(weight.shape)}, expected {list(shape)}", where=where
        )
    if weight is not None and not weight[mask].isfinite().all():
        raise NonFiniteWeights("the pruning method returned NaN or infinity", where=where)


def _check_zeros(mask: Tensor, pattern: Pattern, *, where: str) -> None:
    """The pattern is what the recipe asked for: a method chooses among weights, not how many go."""
    expected = pattern.keep(mask.float())
    if not expected.equal(mask):
        share, wanted = ((~kept).float().mean().item() for kept in (mask, expected))
        raise ShearlingError(
            f"the pruning method returned a mask with {share:.2%} zeros that does not keep to the pattern "
            f"{pattern.name}, which has {wanted:.2%}",
            where=where,
            remedy="This is a defect of the method: it should make its mask with train.sparsity.pattern.keep_mask",
        )
