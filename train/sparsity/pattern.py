"""Where the zeros of a pruned matrix may stand: one class a kind, listed in `shearling.registry.pruning_patterns`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from shearling.errors import ModelUnsupported, NonFiniteWeights, RecipeInvalid
from shearling.registry.pruning_patterns import PRUNING_PATTERNS

if TYPE_CHECKING:
    from torch import Tensor


class Pattern(Protocol):
    """How many weights go, and which compete; scores are only compared where they compete."""

    @property
    def name(self) -> str:
        """As stored in manifests."""
        ...

    @property
    def ratio(self) -> float:
        """Share of weights to prune, 0 to 1."""
        ...

    def misfit(self, row: int) -> str | None:
        """Why rows of so many weights cannot have it, behind `rows of 30 weights`; None where they can."""
        ...

    def keep(self, scores: Tensor) -> Tensor:
        """[rows, row] bool, True = kept, of scores [rows, row]; among equals the lower column goes first.

        The order of the scores decides alone: what is kept of a mask, taken as scores of 0 and 1, is the mask again.
        """
        ...

    @property
    def block(self) -> int | None:
        """Weights compete within runs of so many; None: within the row. Asked for by mask swaps alone."""
        ...


@dataclass(frozen=True)
class Unstructured:
    """The lowest scores of each row go.

    Attributes:
        ratio: share of each row to prune, 0 to 1; the count is int(size * ratio), so the share reached is a little
            less.
    """

    ratio: float

    @property
    def name(self) -> str:
        """As stored in manifests."""
        return "unstructured-per-row"

    @property
    def block(self) -> int | None:
        """See `Pattern.block`."""
        return None

    def misfit(self, row: int) -> str | None:
        """See `Pattern.misfit`."""
        return None

    def keep(self, scores: Tensor) -> Tensor:
        """See `Pattern.keep`."""
        return _drop_lowest(scores, int(scores.shape[1] * self.ratio))


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

    def misfit(self, row: int) -> str | None:
        """See `Pattern.misfit`."""
        return f"are no multiple of {self.block}" if row % self.block else None

    def keep(self, scores: Tensor) -> Tensor:
        """See `Pattern.keep`."""
        return _drop_lowest(scores.reshape(-1, self.block), self.pruned).view(scores.shape)


def two_of_four(_ratio: float) -> SemiStructured:
    """The pattern that GPUs multiply faster."""
    return SemiStructured(2, 4)


def four_of_eight(_ratio: float) -> SemiStructured:
    """Half, less bound than 2:4."""
    return SemiStructured(4, 8)


def make_pattern(name: str, *, ratio: float) -> Pattern:
    """The pattern that a recipe names, with the ratio that goes with it."""
    pattern: Pattern = PRUNING_PATTERNS.get(name, where="sparsity.pattern").load()(ratio)
    return pattern


def check_fit(pattern: Pattern, row: int, *, where: str) -> None:
    """Raise ModelUnsupported, naming the module, where rows of so many weights cannot have the pattern."""
    reason = pattern.misfit(row)
    if reason is not None:
        raise ModelUnsupported(f"rows of {row} weights {reason}", where=where, remedy="Use the pattern 'unstructured'")


class PatternedMatrix(NamedTuple):
    """A matrix that is to be pruned.

    Attributes:
        path: of its module.
        row: weights of a row.
        pattern: of its zeros.
    """

    path: str
    row: int
    pattern: Pattern

    @property
    def stays_whole(self) -> bool:
        """Whether zeros are asked for, and so few that a row has none."""
        import torch

        return self.pattern.ratio > 0 and bool(self.pattern.keep(torch.zeros(1, self.row)).all())


def check_patterns(matrices: Sequence[PatternedMatrix]) -> list[PatternedMatrix]:
    """See that matrices can have their patterns, before anything is pruned; gives those that will lose no weight.

    Raises:
        ModelUnsupported: the rows of one cannot have its pattern.
        RecipeInvalid: zeros are asked for, and so few that none of them will have any.
    """
    for path, row, pattern in matrices:
        check_fit(pattern, row, where=path)
    whole = [matrix for matrix in matrices if matrix.stays_whole]
    if matrices and len(whole) == len(matrices):
        rows = sorted({matrix.row for matrix in matrices})
        raise RecipeInvalid(
            f"no layer can take {whole[0].pattern.ratio:g}: of rows of {' and '.join(map(str, rows))} weights that is "
            "less than one",
            where="sparsity.ratio",
            remedy="Raise it; 0 prunes nothing",
        )
    return whole


def competing_block(pattern: Pattern, *, where: str) -> int | None:
    """`Pattern.block`; raises ModelUnsupported for a pattern, of another package, that does not say."""
    if not hasattr(pattern, "block"):
        raise ModelUnsupported(
            f"the pattern {pattern.name} does not say among which weights it chooses, as mask swaps need it",
            where=where,
            remedy="Set sparsity.reconstruction.swaps = 0",
        )
    return pattern.block


def keep_mask(scores: Tensor, pattern: Pattern, *, where: str) -> Tensor:
    """Choose what is kept.

    Args:
        scores: [out, in] float32, finite; among equals the lower column goes first.
        pattern: how many go, and among which.
        where: the module, for the message.

    Returns:
        [out, in] bool, True = kept.

    Raises:
        ModelUnsupported: the rows cannot have the pattern.
        NonFiniteWeights: NaN or infinity among the scores; neither can be ranked.
    """
    check_fit(pattern, scores.shape[1], where=where)
    if not scores.isfinite().all():
        raise NonFiniteWeights(
            "the scores of its weights hold NaN or infinity",
            where=where,
            remedy="Check the base model, then how the pruning method computes its scores",
        )
    return pattern.keep(scores)


def _drop_lowest(scores: Tensor, count: int) -> Tensor:
    """Mask without the `count` lowest entries of each row: what a stable ascending sort would put first."""
    import torch

    if count == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(count, dim=1, keepdim=True).values
    below, tied = scores < threshold, scores == threshold
    # Selecting is several times faster than sorting; only the ties at the threshold need their order.
    room = count - below.sum(dim=1, keepdim=True)
    dropped = below | (tied & (tied.cumsum(dim=1, dtype=torch.int32) <= room))
    return ~dropped
