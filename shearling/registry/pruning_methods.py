"""How weights are chosen to be pruned; what an implementation is, `train.sparsity.criteria.criterion` says."""

from __future__ import annotations

from dataclasses import dataclass

from shearling.registry.registry import Registry, SingleEntry


@dataclass(frozen=True, kw_only=True)
class PruningMethod(SingleEntry):
    """A pruning method; its implementation makes a fresh `Criterion` for every linear layer.

    Attributes:
        needs_calibration: it looks at what enters a layer, so the calibration text is run through the model.
        needs_gram: its implementation is called with a `shearling.calibration.gram.Gram`, X^T X of what enters the
            layer, all that the error depends on; it is filled by the time that the criterion prunes.
        keeps_zeros: what it has pruned stays pruned where it prunes the same weights further, as [variants] asks of it.
    """

    needs_calibration: bool
    needs_gram: bool = False
    keeps_zeros: bool = True

    def __post_init__(self) -> None:
        if self.needs_gram and not self.needs_calibration:
            raise ValueError(f"{self.name}: what needs the Gram matrix needs calibration")


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
            name="sparsegpt",
            summary="what costs the outputs least; the weights that stay make up for it",
            implementation="train.sparsity.criteria.sparsegpt:SparseGPT",
            needs_calibration=True,
            needs_gram=True,
        ),
        PruningMethod(
            name="alps",
            summary="mask and weights together, by ADMM on the layer's error: slower, and the smallest error",
            implementation="train.sparsity.criteria.alps:Alps",
            needs_calibration=True,
            needs_gram=True,
            keeps_zeros=False,
        ),
        PruningMethod(
            name="magnitude",
            summary="the weight alone",
            implementation="train.sparsity.criteria.magnitude:Magnitude",
            needs_calibration=False,
        ),
    ),
)
