"""Pruning a transformer in place, layer by layer, each layer seeing what the pruned layers before it produce."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from shearling.calibration.gram import Gram, LayerGrams
from shearling.calibration.propagation import IN_MEMORY, Propagation, Residence, capture
from shearling.console import log, progress
from shearling.elastic.mask import Masks, PackedMasks
from shearling.errors import NonFiniteWeights, RecipeInvalid, ShapeMismatch, ShearlingError
from shearling.model.layers import TransformerLayers, find_layers
from shearling.recipe.sparsity import ReconstructionSection
from shearling.registry.pruning_methods import PRUNING_METHODS, PruningMethod
from train.sparsity.criteria.criterion import Criterion, Pruned
from train.sparsity.criteria.magnitude import Magnitude
from train.sparsity.pattern import Pattern, PatternedMatrix, check_patterns, competing_block
from train.sparsity.reconstruction.conjugate_gradients import refit
from train.sparsity.reconstruction.layer_tuning import output_error, tune_layer
from train.sparsity.reconstruction.mask_swaps import swap_weights

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class LayerErrors:
    """Squared distance of a layer's outputs from those of the dense model, as a share of what the layer adds to its
    inputs.

    Attributes:
        pruned: as the method and the refit of single matrices left it.
        tuned: after the tuning of the whole layer.
    """

    pruned: float
    tuned: float


@dataclass(frozen=True)
class Sparsified:
    """What was pruned.

    Attributes:
        masks: module path -> mask [out, in], True = kept.
        errors: of each layer, where layers were tuned.
    """

    masks: Masks
    errors: tuple[LayerErrors, ...] = ()


class _TokenCount:
    """How many tokens a linear has seen."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, inputs: Tensor) -> None:
        """Take in what enters it."""
        self.count += inputs.shape[:-1].numel()


Done = Callable[[int, Mapping[str, "Tensor"]], None]
"""Called with the index of a layer and the masks of its linears when it is pruned, while it is still in memory."""


def _keep(_index: int, _masks: Mapping[str, Tensor]) -> None:
    """Leave the layer where it is."""


def sparsify(
    model: nn.Module,
    calibration: Sequence[Tensor],
    *,
    method: str,
    pattern: Pattern | Sequence[Pattern | None],
    reconstruction: ReconstructionSection | None = None,
    seed: int = 0,
    batch_size: int = 1,
    residence: Residence = IN_MEMORY,
    done: Done = _keep,
) -> Sparsified:
    """Prune every linear layer inside the transformer layers of `model`, in place; nothing else is touched.

    A method that needs calibration does, for each transformer layer in turn: (1) forward the calibration text, while
    all its linears watch what enters them, (2) prune them, (3) forward again, so that the next layer sees what the
    pruned one produces. A reconstruction repairs each layer between (2) and (3). Beside one layer, the hidden states of
    the calibration text are held (twice where layers are tuned, since the dense model's are the target), what is
    gathered of that layer, and one bit for each weight; the rest of the model need not be in memory.

    Matrices of an expert watch the tokens that are routed to it. Where no token of the text is, nothing is known but
    the weights: they go by magnitude, and it is said of how many matrices that holds.

    Args:
        model: a decoder or a classifier; evaluated in eval mode, in its own dtype, and left frozen.
        calibration: token ids [tokens] of each sample, without padding; unused by methods that need none.
        method: how weights are chosen, a name in PRUNING_METHODS.
        pattern: how many go, and among which; one for all layers, or one for each, None for a layer that stays as it
            is and gets no masks.
        reconstruction: how the kept weights make up for those that went; None leaves them as the method does.
        seed: of the order of the batches in a tuning.
        batch_size: samples of equal length that run together; changes the speed alone, where no layer is tuned.
        residence: brings layers into memory, where the model is not there as a whole.
        done: takes a pruned layer, before it leaves the memory again.

    Raises:
        UsageError: there is no such method.
        RecipeInvalid: calibration text is needed, and there is none; or so few zeros are asked for that no row has any.
        ModelUnsupported: there are no layers that are alike, or their rows cannot have the pattern.
        NonFiniteWeights: the calibration, the scores or new weights hold NaN or infinity.
        ShapeMismatch: the method returned what does not fit the weight.
        ShearlingError: the method pruned otherwise than the pattern.
    """
    entry, transformer = PRUNING_METHODS.get(method, where="sparsity.method"), find_layers(model)
    patterns = tuple(pattern) if isinstance(pattern, Sequence) else (pattern,) * len(transformer.layers)
    # Before the first weight changes.
    _say_if_whole(check_patterns(patterned(transformer, patterns)))
    was_training = model.training
    model.eval().requires_grad_(False)
    try:
        if entry.needs_calibration or reconstruction is not None:
            _check_calibration(calibration, entry)
            states = capture(model, transformer, calibration, batch_size=batch_size, residence=residence)
            return _LayerByLayer(transformer, entry, patterns, reconstruction, seed, residence, done).run(states)
        return _prune_by_weights(transformer, entry, patterns, residence, done)
    finally:
        model.train(was_training)


def patterned(transformer: TransformerLayers, patterns: Sequence[Pattern | None]) -> list[PatternedMatrix]:
    """Every linear with the pattern of its layer; those of layers without one are left out."""
    return [
        PatternedMatrix(path, linear.in_features, pattern)
        for index, pattern in enumerate(patterns)
        if pattern is not None
        for path, linear in transformer.linears_of(index).items()
    ]


def _say_if_whole(matrices: Sequence[PatternedMatrix]) -> None:
    """A row loses a whole number of weights, which may be none."""
    if matrices:
        path, row, pattern = matrices[0]
        log.print(
            f"{len(matrices)} matrices keep all their weights, the first is {path}: of rows of {row} weights a share "
            f"of {pattern.ratio:g} is less than one"
        )


def _prune_by_weights(
    transformer: TransformerLayers,
    method: PruningMethod,
    patterns: Sequence[Pattern | None],
    residence: Residence,
    done: Done,
) -> Sparsified:
    """Pruning without text; the arguments are those of `sparsify`."""
    make, masks = method.load(), PackedMasks()
    for index, pattern in enumerate(patterns):
        with residence.layer(index):
            pruned = {}
            if pattern is not None:
                linears = transformer.linears_of(index)
                pruned = {path: _prune(linear, make(), pattern, path) for path, linear in linears.items()}
            done(index, pruned)
        masks.add(pruned)
    return Sparsified(masks)


@dataclass(frozen=True)
class _LayerByLayer:
    """Pruning by calibration text; the fields are the arguments of `sparsify`."""

    transformer: TransformerLayers
    method: PruningMethod
    patterns: Sequence[Pattern | None]
    reconstruction: ReconstructionSection | None
    seed: int
    residence: Residence
    done: Done

    def run(self, states: Propagation) -> Sparsified:
        """Prune all layers."""
        masks, errors, unseen = PackedMasks(), list[LayerErrors](), list[str]()
        tuned = self.reconstruction is not None and self.reconstruction.layer_epochs > 0
        dense = states.fork() if tuned else None
        layers = self.transformer.layers
        with progress(f"{self.method.name}, layer by layer", total=len(layers)) as advance:
            for index, layer in enumerate(layers):
                with self.residence.layer(index):
                    targets = [] if dense is None else list(dense.forward(layer))
                    pattern = self.patterns[index]
                    pruned = {} if pattern is None else self._prune_layer(index, pattern, states, unseen)
                    if dense is not None:
                        errors.append(self._tune(index, states, pruned, targets))
                        dense.advance_to(targets)
                    if index + 1 < len(layers):
                        states.advance(layer)
                    self.done(index, pruned)
                masks.add(pruned)
                advance()
        if unseen:
            log.print(
                f"no token of the calibration text was routed to {len(unseen)} matrices of experts, the first is "
                f"{unseen[0]}: they were pruned by magnitude, more samples would reach them"
            )
        return Sparsified(masks, tuple(errors))

    def _prune_layer(self, index: int, pattern: Pattern, states: Propagation, unseen: list[str]) -> dict[str, Tensor]:
        make, masks, linears = self.method.load(), {}, self.transformer.linears_of(index)
        grams = LayerGrams(linears)
        criteria: dict[str, Criterion] = {
            path: make(grams[path]) if self.method.needs_gram else make() for path in linears
        }
        watchers = [(linear, criteria[path].add) for path, linear in linears.items()] * self.method.needs_calibration
        if self.method.needs_gram or self.reconstruction is not None:
            watchers += [(linear, partial(grams.watch, path)) for path, linear in linears.items()]
        routed = {path: _TokenCount() for path in linears if self.transformer.is_routed(path)}
        watchers += [(linears[path], tokens.add) for path, tokens in routed.items()]
        states.watch(self.transformer.layers[index], watchers)
        if index == 0:
            _say_if_short({path: linear for path, linear in linears.items() if path not in routed}, grams)
        for path, linear in linears.items():
            dense = linear.weight.detach().clone()
            # Popped, so that what it gathered is freed before the next one works.
            criterion = criteria.pop(path)
            if path in routed and not routed[path].count:
                masks[path] = _prune(linear, Magnitude(), pattern, path)
                unseen.append(path)
                continue
            masks[path] = _prune(linear, criterion, pattern, path)
            if self.reconstruction is not None:
                masks[path] = self._refit(linear, dense, masks[path], grams.pop(path), pattern, path)
        return masks

    def _refit(self, linear: nn.Linear, dense: Tensor, mask: Tensor, gram: Gram, pattern: Pattern, path: str) -> Tensor:
        """Repair one matrix; gives its mask, which swaps may have changed."""
        import torch

        section = self.reconstruction
        if section is None or not (section.swaps or section.matrix_steps):
            return mask
        hessian = gram.damped(where=path)
        with torch.no_grad():
            weight = linear.weight.detach()
            if section.swaps:
                block = competing_block(pattern, where=path)
                mask, weight = swap_weights(dense, weight, mask, hessian, block=block, swaps=section.swaps)
                _check_zeros(mask, pattern, where=path)
            weight = refit(dense, weight, mask, hessian, steps=section.matrix_steps)
            _check(Pruned(mask, weight), linear, where=path)
            linear.weight.copy_(weight)
        return mask

    def _tune(
        self, index: int, states: Propagation, masks: Mapping[str, Tensor], targets: Sequence[Tensor]
    ) -> LayerErrors:
        import torch

        section = self.reconstruction
        layer, linears = self.transformer.layers[index], self.transformer.linears_of(index)
        pruned = output_error(layer, states, targets)
        if section is None or not masks:
            return LayerErrors(pruned, pruned)
        before = {path: linear.weight.detach().clone() for path, linear in linears.items()}
        tune_layer(
            layer,
            linears,
            masks,
            states,
            targets,
            epochs=section.layer_epochs,
            learning_rate=section.learning_rate,
            seed=self.seed + index,
        )
        tuned = output_error(layer, states, targets)
        if tuned < pruned:
            return LayerErrors(pruned, tuned)
        # The first steps of Adam are as large as its rate, however near the weights are: few of them may lead away.
        with torch.no_grad():
            for path, linear in linears.items():
                linear.weight.copy_(before[path])
        return LayerErrors(pruned, pruned)


def _say_if_short(linears: Mapping[str, nn.Linear], grams: LayerGrams) -> None:
    """Fewer tokens than inputs leave directions of which nothing is known."""
    path, widest = max(linears.items(), key=lambda item: item[1].in_features)
    tokens = grams[path].tokens
    if 0 < tokens < widest.in_features:
        log.print(
            f"the calibration text has {tokens} tokens, fewer than the {widest.in_features} inputs of {path}: its "
            "Hessian is damped, and more samples would repair more"
        )


def _check_calibration(calibration: Sequence[Tensor], method: PruningMethod) -> None:
    if not calibration or any(len(sample) == 0 for sample in calibration):
        raise RecipeInvalid(
            f"{method.name} or its reconstruction needs calibration text, and no empty sample",
            where="sparsity.calibration",
        )


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
