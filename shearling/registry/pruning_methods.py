"""How weights are chosen to be pruned; what an implementation is, `train.sparsity.criteria.criterion` says."""

from __future__ import annotations

from dataclasses import dataclass

from shearling.registry.registry import Registry, SingleEntry


@dataclass(frozen=True, kw_only=True)
class PruningMethod(SingleEntry):
    """A pruning method; its implementation makes a fresh `Criterion` for every linear layer.

    Attributes:
        needs_calibration: it looks at what enters a layer, so the calibration text is run through the model.
    """

    needs_calibration: bool


PRUNING_METHODS: Registry[PruningMethod] = Registry(
    noun="pruning method",
    group="shearling.pruning_methods",
    entry_type=PruningMethod,
    entries=(
        PruningMethod(
            name="wanda",
            summary="weight times the norm of the input that it multiplies",
            implementation="train.sparsity.criteria.wanda:Wanda",
            needs_calibration=True,
        ),
        PruningMethod(
            name="magnitude",
            summary="the weight alone",
            implementation="train.sparsity.criteria.magnitude:Magnitude",
            needs_calibration=False,
        ),
    ),
)
