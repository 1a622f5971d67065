"""Which merges keep the trained function: a consequence of how the adapter was trained.

An update trained under the mask has no exact low-rank form (B A times a mask is not of low rank); one trained without
it has no exact sparse form. So the training decides, and a merge that would silently change the model is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from shearling.errors import MergeRefused
from shearling.strict_json import Document

if TYPE_CHECKING:
    from shearling.elastic.search_space import SearchSpace

MergeMode = Literal["masked", "separate", "dense"]


class MergeRule(Document):
    """The merges that are exact, the one to take, and why."""

    allowed: tuple[MergeMode, ...]
    default: MergeMode
    reason: str


def merge_rule(*, masked_training: bool, sparse: bool, grid_bits: int | None = None) -> MergeRule:
    """What an adapter may be merged into, by how it was trained.

    An update trained under the mask has no exact low-rank form, one trained without it no exact sparse form.

    Args:
        masked_training: under the mask.
        sparse: the frozen model is pruned.
        grid_bits: of the integers that the weights were trained on; None where they were not.
    """
    if masked_training and grid_bits is not None:
        return MergeRule(
            allowed=("masked",),
            default="masked",
            reason=f"trained under the mask on integers of {grid_bits} bits: exact only when merged into them",
        )
    if masked_training:
        return MergeRule(
            allowed=("masked",),
            default="masked",
            reason="trained under the mask: exact only when merged under the mask",
        )
    if grid_bits is not None:
        return MergeRule(
            allowed=("separate", "dense"),
            default="separate",
            reason=f"trained beside integers of {grid_bits} bits: exact beside them, or dense, which is off their grid",
        )
    if not sparse:
        return MergeRule(
            allowed=("dense", "separate"), default="dense", reason="the base is dense: merging loses nothing"
        )
    reason = (
        "trained without the mask: exact beside the sparse weights, or dense; a masked merge is "
        "approximate (--allow-approximate)"
    )
    return MergeRule(allowed=("separate", "dense"), default="separate", reason=reason)


def merge_rule_of(space: SearchSpace, *, sparse: bool) -> MergeRule:
    """The rule of the adapters of a search space; see `merge_rule`."""
    grid = space.adapter.grid
    return merge_rule(
        masked_training=space.adapter.masked_training, sparse=sparse, grid_bits=None if grid is None else grid.bits
    )


def keeps_ranks_apart(space: SearchSpace, *, sparse: bool) -> bool:
    """Whether an export computes the adapter beside the weights, unless it is told otherwise."""
    return merge_rule_of(space, sparse=sparse).default == "separate"


def resolve_merge(rule: MergeRule, requested: MergeMode | None, *, allow_approximate: bool, sparse: bool) -> MergeMode:
    """The merge to do.

    Args:
        rule: of the adapter.
        requested: None takes the default.
        allow_approximate: merge under a mask what was trained without.
        sparse: the frozen model is pruned; one that is not has no mask.

    Raises:
        MergeRefused: it would change the trained function, and `allow_approximate` does not apply or is not set.
    """
    mode = requested or rule.default
    if mode in rule.allowed:
        return mode
    approximate = mode == "masked" and sparse and rule.default == "separate"
    if approximate and allow_approximate:
        return mode
    remedy = "Add --allow-approximate to accept and report the error" if approximate else f"Use --merge {rule.default}"
    raise MergeRefused(f"merge mode '{mode}' is refused: {rule.reason}", where="--merge", remedy=remedy)
