"""Shares of zeros by layer, searched for by evolution (EvoPress, Sieberling et al., 2024, arXiv 2410.14649).

A candidate has an integer level for each layer, whose sum is zero, and prunes layer i to ratio + `STEP` level_i. An
offspring moves a level from one layer to another, once to three times. Of each generation's offspring, measured on a
part of the text, the best is measured on all of it, and takes its parent's place if it is better. Every candidate is
pruned by Wanda's scores of the dense model, which stand in for the method that prunes in the end.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from shearling.console import progress
from shearling.errors import ModelUnsupported
from shearling.evaluation.precision import resolve_precision
from shearling.model.layers import TransformerLayers, find_layers
from train.sparsity.allocation.dense_norms import dense_norms
from train.sparsity.criteria.wanda import ChannelNorm, wanda_scores
from train.sparsity.pattern import Unstructured

if TYPE_CHECKING:
    from torch import Tensor, nn

STEP = 0.02
MOST_LEVELS = 8
"""A layer's share is at most `STEP` times this from the ratio."""
GENERATIONS = 25
OFFSPRING = 4
FIRST_LOOK_SHARE = 0.25
"""Of the text, that ranks the offspring of a generation."""
MOST_MOVES = 3


def evolved_ratios(
    model: nn.Module, calibration: Sequence[Tensor], ratio: float, *, seed: int, generations: int = GENERATIONS
) -> tuple[float, ...]:
    """Share of zeros of each layer; the model is as before when it returns.

    Args:
        model: a decoder, dense; its linear weights are held twice.
        calibration: token ids [tokens] of each sample; the loss on them is what the search lowers.
        ratio: the mean over all layers, 0 to 1.
        seed: of the mutations.
        generations: of `OFFSPRING` candidates each.

    Raises:
        ModelUnsupported: the model predicts no tokens.
    """
    if getattr(model, "get_output_embeddings", lambda: None)() is None:
        raise ModelUnsupported(
            "a classifier has no loss before it is trained",
            where="sparsity.allocation",
            remedy='Set it to "uniform" or "owl"',
        )
    candidates = _Candidates(model, calibration, ratio)
    generator = random.Random(seed)
    try:
        best = (0,) * len(candidates.transformer.layers)
        least = candidates.loss(best, calibration)
        first_look = calibration[: max(1, int(FIRST_LOOK_SHARE * len(calibration)))]
        with progress("searching the shares of the layers", total=generations) as advance:
            for _ in range(generations):
                offspring = {mutate(best, ratio, generator) for _ in range(OFFSPRING)} - {best}
                if offspring:
                    chosen = min(sorted(offspring), key=lambda levels: candidates.loss(levels, first_look))
                    loss = candidates.loss(chosen, calibration)
                    if loss < least:
                        best, least = chosen, loss
                advance(note=f"loss {least:.3f}")
    finally:
        candidates.restore()
    return tuple(ratio + STEP * level for level in best)


def mutate(levels: tuple[int, ...], ratio: float, generator: random.Random) -> tuple[int, ...]:
    """Move a level from one layer to another, once to `MOST_MOVES` times, where both stay within bounds."""
    changed = list(levels)
    for _ in range(generator.randint(1, MOST_MOVES)):
        more, less = generator.sample(range(len(changed)), 2) if len(changed) > 1 else (0, 0)
        if more != less and _allowed(changed[more] + 1, ratio) and _allowed(changed[less] - 1, ratio):
            changed[more] += 1
            changed[less] -= 1
    return tuple(changed)


def _allowed(level: int, ratio: float) -> bool:
    return abs(level) <= MOST_LEVELS and 0 <= ratio + STEP * level < 1


class _Candidates:
    """The model, pruned to one candidate after another; layers whose level stays are left as they are."""

    def __init__(self, model: nn.Module, calibration: Sequence[Tensor], ratio: float) -> None:
        self.transformer: TransformerLayers = find_layers(model)
        self._model = model
        self._ratio = ratio
        self._norms: dict[str, ChannelNorm] = dense_norms(model, calibration)
        linears = self.transformer.linears()
        self._dense = {path: linear.weight.detach().clone() for path, linear in linears.items()}
        self._levels: list[int | None] = [None] * len(self.transformer.layers)

    def loss(self, levels: Sequence[int], text: Sequence[Tensor]) -> float:
        """Mean negative log-likelihood of a token, nats."""
        import torch
        from torch.nn import functional as F

        for index, level in enumerate(levels):
            if self._levels[index] != level:
                self._prune(index, level)
        device = next(self._model.parameters()).device
        total, tokens = 0.0, 0
        bf16 = resolve_precision("auto", device=device.type) == "bf16"
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            for sample in text:
                ids = sample.to(device)
                logits = self._model(input_ids=ids[None], use_cache=False).logits[0, :-1]
                total += F.cross_entropy(logits.float(), ids[1:], reduction="sum").item()
                tokens += len(ids) - 1
        return total / tokens

    def _prune(self, index: int, level: int) -> None:
        import torch

        pattern = Unstructured(self._ratio + STEP * level)
        with torch.no_grad():
            for path, linear in self.transformer.linears_of(index).items():
                dense, norm = self._dense[path], self._norms[path]
                unseen = norm.mean_square is None and self.transformer.is_routed(path)
                # An expert of which the text tells nothing goes by magnitude, as it will when it is pruned.
                scores = dense.float().abs() if unseen else wanda_scores(dense, norm, where=path)
                linear.weight.copy_(dense * pattern.keep(scores))
        self._levels[index] = level

    def restore(self) -> None:
        """Make the model dense again."""
        import torch

        with torch.no_grad():
            for path, linear in self.transformer.linears().items():
                linear.weight.copy_(self._dense[path])
