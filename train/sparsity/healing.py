"""Healing: all kept weights, tuned together until the pruned model predicts what the dense one does.

Layer by layer, what a layer cannot make up for stays in the hidden states of all that follow. Here the gradient comes
from the end, KL(dense || pruned) of the next token on the calibration text, and the zeros stay. No label is seen, so
the result is a pruned base like any other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shearling.console import progress
from shearling.errors import NonFiniteWeights
from shearling.evaluation.precision import resolve_precision
from shearling.recipe.sparsity import HealingSection
from shearling.strict_json import Document
from train.divergence import divergence_sum

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

BETAS = (0.9, 0.95)
WARMUP_SHARE = 0.1
"""Of the steps: Adam knows the size of no gradient at first."""


class Healed(Document):
    """How far the pruned model was from the dense one: KL in nats a token of a decoder, of an encoder the relative
    squared distance of its last hidden states; means over the first and the last tenth of the steps.
    """

    steps: int
    before: float
    after: float


def heal(
    model: nn.Module,
    dense: nn.Module,
    masks: Mapping[str, Tensor],
    windows: Sequence[Tensor],
    section: HealingSection,
    *,
    classifier: bool,
) -> Healed:
    """Tune the pruned weights of a model, in place.

    A weight is updated as soon as its gradient is there, so that no two gradients are held; the memory is that of the
    model, of Adam's two moments of its pruned matrices, and of the dense model.

    Args:
        model: pruned, in float32; left frozen.
        dense: what it was, in any dtype.
        masks: of its pruned modules, True = kept.
        windows: token ids [tokens], all of one length; `section.batch_size` of them make a step.
        section: rate and steps.
        classifier: the head is new and says nothing, so that hidden states are compared.

    Raises:
        NonFiniteWeights: the tuning diverged.
    """
    import torch

    steps, losses = section.steps, []
    device = next(model.parameters()).device
    bf16 = resolve_precision("auto") == "bf16"
    model.requires_grad_(False)
    dense.requires_grad_(False)
    modules = dict(model.named_modules())
    tuned = [_Tuned(modules[path].weight, mask, section.learning_rate) for path, mask in masks.items()]
    try:
        with progress("healing", total=steps) as advance:
            for step in range(steps):
                batch = torch.stack(list(windows[step * section.batch_size : (step + 1) * section.batch_size]))
                for weight in tuned:
                    weight.share = _schedule(step, steps)
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    loss = _distance(model, dense, batch.to(device), classifier=classifier)
                loss.backward()
                losses.append(loss.item())
                if not math.isfinite(losses[-1]):
                    raise NonFiniteWeights(
                        f"healing diverged at step {step + 1}: the distance is {losses[-1]}",
                        where="sparsity.healing",
                        remedy="Lower its learning_rate",
                    )
                advance(note=f"distance {losses[-1]:.3f}")
    finally:
        for weight in tuned:
            weight.release()
    tenth = max(1, steps // 10)
    return Healed(steps=steps, before=_mean(losses[:tenth]), after=_mean(losses[-tenth:]))


class _Tuned:
    """One matrix and its optimizer, which steps at the end of the matrix's backward.

    Attributes:
        share: of the learning rate, now.
    """

    def __init__(self, weight: nn.Parameter, mask: Tensor, learning_rate: float) -> None:
        import torch

        self.share = 1.0
        self._weight, self._mask = weight, mask
        self._rate = learning_rate * float(weight.detach()[mask].float().square().mean().sqrt()) if mask.any() else 0.0
        weight.requires_grad_(True)
        # Fused: the plain form reads and writes each matrix a dozen times, and took several times as long as the
        # forward and the backward together.
        self._optimizer = torch.optim.Adam([weight], lr=self._rate, betas=BETAS, fused=True)
        self._hook = weight.register_post_accumulate_grad_hook(self._step)

    def _step(self, weight: torch.Tensor) -> None:
        import torch

        if weight.grad is None:
            return
        weight.grad.mul_(self._mask.view(torch.int8))
        self._optimizer.param_groups[0]["lr"] = self._rate * self.share
        self._optimizer.step()
        weight.grad = None

    def release(self) -> None:
        self._hook.remove()
        self._weight.requires_grad_(False)
        self._weight.grad = None


def _distance(model: nn.Module, dense: nn.Module, batch: Tensor, *, classifier: bool) -> Tensor:
    import torch

    if classifier:
        with torch.no_grad():
            wanted: Any = _hidden(dense, batch).float()
        difference: Tensor = (_hidden(model, batch).float() - wanted).square().mean() / wanted.square().mean()
        return difference
    with torch.no_grad():
        wanted = dense(input_ids=batch, use_cache=False).logits
    logits = model(input_ids=batch, use_cache=False).logits
    positions = batch.numel()
    shares = torch.full((positions,), 1 / positions, device=batch.device)
    return divergence_sum(logits.reshape(positions, -1), wanted.reshape(positions, -1), shares)


def _hidden(model: Any, batch: Tensor) -> Tensor:
    hidden: Tensor = model.base_model(input_ids=batch).last_hidden_state
    return hidden


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    warmup = max(1, round(WARMUP_SHARE * steps))
    return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)
