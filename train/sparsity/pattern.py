"""Which of a matrix's weights go, once each has a score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from shearling.errors import ModelUnsupported, RecipeInvalid

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Unstructured:
    """The lowest scores of each group go.

    Attributes:
        ratio: share of each group to prune, 0 to 1; the count is int(size * ratio), so the share reached is a little
            less.
        group: what competes: the weights of one output row (Wanda), or of the whole matrix.
    """

    ratio: float
    group: Literal["row", "matrix"] = "row"

    @property
    def name(self) -> str:
        """As stored in manifests."""
        return f"unstructured-per-{self.group}"


@dataclass(frozen=True)
class SemiStructured:
    """In each run of `block` consecutive weights of a row, the `pruned` lowest scores go: `2:4` prunes 2 of 4."""

    pruned: int
    block: int

    @property
    def name(self) -> str:
        """As stored in manifests."""
        return f"{self.pruned}:{self.block}"

    @property
    def ratio(self) -> float:
        """Share of zeros, exact."""
        return self.pruned / self.block


Pattern = Unstructured | SemiStructured


def parse_pattern(name: str, *, ratio: float) -> Pattern:
    """The pattern that a recipe names: `unstructured`, or `n:m` such as `2:4`.

    Raises:
        RecipeInvalid: unknown, or the ratio does not fit it.
    """
    if not 0 <= ratio < 1:
        raise RecipeInvalid(f"ratio is {ratio}, expected 0 <= ratio < 1", where="sparsity.ratio")
    if name in ("unstructured", "unstructured-per-row"):
        return Unstructured(ratio)
    if name == "unstructured-per-matrix":
        return Unstructured(ratio, group="matrix")
    pruned, _, block = name.partition(":")
    if not (pruned.isdigit() and block.isdigit() and 0 < int(pruned) < int(block)):
        raise RecipeInvalid(
            f"unknown pattern {name!r}", where="sparsity.pattern", remedy="Use 'unstructured', '2:4' or '4:8'"
        )
    if ratio * int(block) != int(pruned):
        raise RecipeInvalid(
            f"pattern {name} prunes {int(pruned) / int(block)} of all weights, ratio is {ratio}", where="sparsity.ratio"
        )
    return SemiStructured(int(pruned), int(block))


def keep_mask(scores: Tensor, pattern: Pattern, *, where: str) -> Tensor:
    """Choose what is kept.

    Args:
        scores: [out, in] float32, finite; among equals the lower column goes first.
        pattern: how many go, and among which.
        where: the module, for the message.

    Returns:
        [out, in] bool, True = kept.

    Raises:
        ModelUnsupported: the row length is no multiple of an n:m block.
    """
    out_features, in_features = scores.shape
    if isinstance(pattern, SemiStructured):
        if in_features % pattern.block:
            raise ModelUnsupported(
                f"rows of {in_features} weights are no multiple of {pattern.block}",
                where=where,
                remedy="Use 'unstructured'",
            )
        return _drop_lowest(scores.reshape(-1, pattern.block), pattern.pruned).view(out_features, in_features)
    if pattern.group == "matrix":
        return _drop_lowest(scores.reshape(1, -1), int(scores.numel() * pattern.ratio)).view(out_features, in_features)
    return _drop_lowest(scores, int(in_features * pattern.ratio))


def _drop_lowest(scores: Tensor, count: int) -> Tensor:
    """Mask without the `count` lowest entries of each row: what a stable ascending sort would put first."""
    import torch

    if count == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(count, dim=1, keepdim=True).values
    below, tied = scores < threshold, scores == threshold
    # Selecting is several times faster than sorting; only the ties at the threshold need their order.
    room = count - below.sum(dim=1, keepdim=True)
    dropped = below | (tied & (tied.cumsum(dim=1) <= room))
    return ~dropped
