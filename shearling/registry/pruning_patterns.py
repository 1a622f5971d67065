"""Where the zeros of a pruned matrix may stand; what an implementation is, `train.sparsity.pattern` says."""

from __future__ import annotations

from dataclasses import dataclass

from shearling.registry.registry import Registry, SingleEntry


@dataclass(frozen=True, kw_only=True)
class PruningPattern(SingleEntry):
    """A pattern; its implementation makes a `Pattern` from the ratio of a recipe.

    Attributes:
        ratio: the share of zeros that it always has; None where the recipe chooses it.
    """

    ratio: float | None


PRUNING_PATTERNS: Registry[PruningPattern] = Registry(
    noun="pruning pattern",
    group="shearling.pruning_patterns",
    entry_type=PruningPattern,
    entries=(
        PruningPattern(
            name="unstructured",
            summary="anywhere, the same number in every row",
            implementation="train.sparsity.pattern:Unstructured",
            ratio=None,
        ),
        PruningPattern(
            name="2:4",
            summary="2 of every 4 consecutive weights of a row",
            implementation="train.sparsity.pattern:two_of_four",
            ratio=0.5,
        ),
        PruningPattern(
            name="4:8",
            summary="4 of every 8 consecutive weights of a row",
            implementation="train.sparsity.pattern:four_of_eight",
            ratio=0.5,
        ),
    ),
)
