"""Some parameters of a model, tuned together until it predicts what another model does.

Layer by layer, what a layer cannot make up for stays in the hidden states of all that follow. Here the gradient comes
from the end: KL(teacher || model) of the next token on the calibration text, without a label.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from shearling.calibration.divergence import divergence_sum
from shearling.console import progress
from shearling.errors import NonFiniteWeights, TrainingDiverged

if TYPE_CHECKING:
    from torch import Tensor, nn

BETAS = (0.9, 0.95)
WARMUP_SHARE = 0.1
"""Of the steps: Adam knows the size of no gradient at first."""


@dataclass(frozen=True)
class TunedParameter:
    """One parameter and how fast it moves.

    Attributes:
        parameter: float32.
        learning_rate: the largest of the schedule.
        mask: of its shape, True = tuned; None tunes all of it.
    """

    parameter: nn.Parameter
    learning_rate: float
    mask: Tensor | None = None


def distil(
    model: nn.Module,
    teacher: nn.Module,
    tuned: Sequence[TunedParameter],
    windows: Sequence[Tensor],
    *,
    batch_size: int,
    classifier: bool,
    bf16: bool,
    title: str,
    where: str,
    remedy: str,
) -> list[float]:
    """Tune the parameters in place; all others, and the teacher, are left frozen.

    A parameter is updated as soon as its gradient is there, so that no two gradients are held; the memory is that of
    both models and of Adam's two moments of what is tuned.

    Args:
        model: in float32.
        teacher: in any dtype.
        tuned: parameters of the model.
        windows: token ids [tokens], all of one length; `batch_size` of them make a step.
        batch_size: windows of a step.
        classifier: the head is new and says nothing, so that last hidden states are compared.
        bf16: whether to autocast to it.
        title: of the progress, such as `healing`.
        where: to look if the tuning diverges.
        remedy: what to do then.

    Returns:
        The distance at each step: KL in nats a token of a decoder, of an encoder the relative squared distance of its
        last hidden states.

    Raises:
        TrainingDiverged: the tuning did, and the rate is too high.
        NonFiniteWeights: there is no distance before anything is tuned.
    """
    steps, losses = len(windows) // batch_size, list[float]()
    device = next(model.parameters()).device
    model.requires_grad_(False)
    teacher.requires_grad_(False)
    with _optimizers(tuned) as optimizers, progress(title, total=steps) as advance:
        for step in range(steps):
            batch = torch.stack(list(windows[step * batch_size : (step + 1) * batch_size]))
            for optimizer in optimizers:
                optimizer.share = _schedule(step, steps)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                loss = _distance(model, teacher, batch.to(device), classifier=classifier)
            loss.backward()
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                # Before anything was tuned, it is the models that are at fault.
                error = NonFiniteWeights if step == 0 else TrainingDiverged
                raise error(
                    f"{title} diverged at step {step + 1}: the distance is {losses[-1]}", where=where, remedy=remedy
                )
            advance(note=f"distance {losses[-1]:.3f}")
    return losses


@contextmanager
def _optimizers(tuned: Sequence[TunedParameter]) -> Iterator[list[_Optimizer]]:
    optimizers = [_Optimizer(item) for item in tuned]
    try:
        yield optimizers
    finally:
        for optimizer in optimizers:
            optimizer.release()


class _Optimizer:
    """Of one parameter, stepping at the end of the parameter's backward.

    Attributes:
        share: of the learning rate, now.
    """

    def __init__(self, tuned: TunedParameter) -> None:
        self.share = 1.0
        self._tuned = tuned
        tuned.parameter.requires_grad_(True)
        # Fused: the plain form reads and writes each matrix a dozen times, and took several times as long as the
        # forward and the backward together.
        self._adam = torch.optim.Adam([tuned.parameter], lr=tuned.learning_rate, betas=BETAS, fused=True)
        self._hook = tuned.parameter.register_post_accumulate_grad_hook(self._step)

    def _step(self, parameter: Tensor) -> None:
        if parameter.grad is None:
            return
        if self._tuned.mask is not None:
            parameter.grad.mul_(self._tuned.mask.view(torch.int8))
        self._adam.param_groups[0]["lr"] = self._tuned.learning_rate * self.share
        self._adam.step()
        parameter.grad = None

    def release(self) -> None:
        self._hook.remove()
        self._tuned.parameter.requires_grad_(False)
        self._tuned.parameter.grad = None


def _distance(model: nn.Module, teacher: nn.Module, batch: Tensor, *, classifier: bool) -> Tensor:
    if classifier:
        with torch.no_grad():
            wanted: Any = _hidden(teacher, batch).float()
        difference: Tensor = (_hidden(model, batch).float() - wanted).square().mean() / wanted.square().mean()
        return difference
    with torch.no_grad():
        wanted = teacher(input_ids=batch, use_cache=False).logits
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
