"""Pruning a transformer in place, layer by layer, each layer seeing what the pruned layers before it produce."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from shearling.console import progress
from shearling.errors import ModelUnsupported, RecipeInvalid
from shearling.model.layers import TransformerLayers, find_layers
from train.sparsity.pattern import Pattern, SemiStructured, keep_mask
from train.sparsity.propagation import capture
from train.sparsity.wanda import measure_norms, wanda_scores

if TYPE_CHECKING:
    from torch import Tensor, nn

Method = Literal["wanda", "magnitude"]


def sparsify(
    model: nn.Module, calibration: Sequence[Tensor], *, method: Method, pattern: Pattern, batch_size: int = 1
) -> dict[str, Tensor]:
    """Prune every linear layer inside the transformer layers of `model`, in place; nothing else is touched.

    Wanda, for each transformer layer in turn: (1) forward the calibration text to measure the input norms of all its
    linears in
    one pass, (2) prune them, (3) forward again, so that the next layer sees what the pruned one produces. Beyond the
    model, the hidden states of the calibration text are held, and the scores of one matrix.

    Args:
        model: a decoder or a classifier; evaluated in eval mode, in its own dtype.
        calibration: token ids [tokens] of each sample, without padding; unused by `magnitude`.
        method: how weights are scored.
        pattern: how many go, and among which.
        batch_size: samples of equal length that run together; changes the speed alone.

    Returns:
        Module path -> mask [out, in], True = kept.

    Raises:
        RecipeInvalid: Wanda without calibration text.
        ModelUnsupported: there are no layers that are alike, or a row is no multiple of an n:m block.
        NonFiniteWeights: the calibration ran into NaN or infinity.
    """
    import torch

    transformer = find_layers(model)
    _refuse_misfits(transformer, pattern)
    was_training = model.training
    model.eval()
    try:
        if method == "magnitude":
            with torch.no_grad():
                return {
                    path: _prune(linear, linear.weight.float().abs(), pattern, path)
                    for path, linear in transformer.linears().items()
                }
        return _wanda(model, transformer, calibration, pattern, batch_size=batch_size)
    finally:
        model.train(was_training)


def _wanda(
    model: nn.Module,
    transformer: TransformerLayers,
    calibration: Sequence[Tensor],
    pattern: Pattern,
    *,
    batch_size: int,
) -> dict[str, Tensor]:
    if not calibration or any(len(sample) == 0 for sample in calibration):
        raise RecipeInvalid("Wanda needs calibration text, and no empty sample", where="sparsity.calibration")
    masks: dict[str, Tensor] = {}
    states = capture(model, transformer, calibration, batch_size=batch_size)
    with progress("Wanda, layer by layer", total=len(transformer.layers)) as advance:
        for index, layer in enumerate(transformer.layers):
            modules = dict(layer.named_modules())
            linears: dict[str, nn.Linear] = {
                transformer.module_path(index, name): modules[name] for name in transformer.linear_names
            }
            norms = measure_norms(layer, linears, states)
            for path, linear in linears.items():
                masks[path] = _prune(linear, wanda_scores(linear.weight, norms[path], where=path), pattern, path)
            if index + 1 < len(transformer.layers):
                states.advance(layer)
            advance()
    return masks


def _prune(linear: nn.Linear, scores: Tensor, pattern: Pattern, path: str) -> Tensor:
    import torch

    mask = keep_mask(scores, pattern, where=path)
    with torch.no_grad():
        linear.weight.masked_fill_(~mask, 0)
    return mask


def _refuse_misfits(transformer: TransformerLayers, pattern: Pattern) -> None:
    """Before the first weight changes: an n:m block must divide every row."""
    if not isinstance(pattern, SemiStructured):
        return
    for path, linear in transformer.linears().items():
        if linear.in_features % pattern.block:
            raise ModelUnsupported(
                f"rows of {linear.in_features} weights are no multiple of {pattern.block}",
                where=path,
                remedy="Use the pattern 'unstructured'",
            )
