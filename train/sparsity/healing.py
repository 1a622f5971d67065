"""Healing: all kept weights, tuned together until the pruned model predicts what the dense one does.

The zeros stay, and no label is seen, so the result is a pruned base like any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from shearling.evaluation.precision import resolve_precision
from shearling.recipe.sparsity import HealingSection
from shearling.strict_json import Document
from train.sparsity.reconstruction.layer_tuning import typical_size

if TYPE_CHECKING:
    from torch import Tensor, nn

    from shearling.calibration.distillation import TunedParameter


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

    The memory is that of the model, of Adam's two moments of its pruned matrices, and of the dense model.

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
    from shearling.calibration.distillation import distil

    modules = dict(model.named_modules())
    losses = distil(
        model,
        dense,
        [_tuned(modules[path].weight, mask, section.learning_rate) for path, mask in masks.items()],
        windows[: section.steps * section.batch_size],
        batch_size=section.batch_size,
        classifier=classifier,
        bf16=resolve_precision("auto", device=next(model.parameters()).device.type) == "bf16",
        title="healing",
        where="sparsity.healing",
        remedy="Lower its learning_rate",
    )
    tenth = max(1, section.steps // 10)
    return Healed(steps=section.steps, before=_mean(losses[:tenth]), after=_mean(losses[-tenth:]))


def _tuned(weight: nn.Parameter, mask: Tensor, learning_rate: float) -> TunedParameter:
    """At a rate in units of the size of the kept weights."""
    from shearling.calibration.distillation import TunedParameter

    return TunedParameter(weight, learning_rate * typical_size(weight.detach()[mask]), mask)


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)
