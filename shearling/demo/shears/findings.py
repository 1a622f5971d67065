"""What the numbers of the demo of pruning allow to be said."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from shearling.demo.shears.rows import PEER
from shearling.evaluation.confidence import accuracies_differ

if TYPE_CHECKING:
    from shearling.demo.shears.rows import ShearsRow


def describe(rows: Iterable[ShearsRow], n: int) -> list[str]:
    """What the numbers allow to be said."""
    rows = list(rows)
    row = {item.role: item for item in rows}
    ours, lora, sparse, packed = row["ours"], row["lora"], row["sparse"], row["packed"]
    said = []
    said.append(
        f"Fine-tuned, pruned and healed: {lora.accuracy:.1%} becomes {sparse.accuracy:.1%}{_verdict(sparse, lora, n)}."
    )
    said.append(
        f"Then trained under the mask: {ours.accuracy:.1%}, {_against(ours, sparse, n)} that,"
        f" {_against(ours, lora, n)} dense + LoRA{_zeros(ours)}."
    )
    if lora.bits_per_byte is not None and ours.bits_per_byte is not None:
        said.append(
            f"The zeros cost language: {lora.bits_per_byte:.2f} to {ours.bits_per_byte:.2f} bits per byte of the "
            f"task's text."
        )
    said += _served(packed, lora, n)
    said += _passed(packed, [item for item in rows if item.role == PEER and not item.is_ours])
    return said


def _zeros(row: ShearsRow) -> str:
    return "" if row.sparsity is None else f"; {row.sparsity:.1%} of the weights are exactly zero"


def _served(packed: ShearsRow, lora: ShearsRow, n: int) -> Iterable[str]:
    if packed.speed is None or lora.speed is None or packed.speed.decode_ratio is None:
        return
    ratio, size = packed.speed.decode_ratio, packed.speed.weight_bytes / lora.speed.weight_bytes
    change = (
        "no difference in speed can be seen"
        if ratio.low <= 1 <= ratio.high
        else f"a token takes {ratio.median:.2f} times as long"
    )
    yield (
        f"Served in int8, zeros packed away: {packed.accuracy:.1%}, {_against(packed, lora, n)} dense + LoRA in int8; "
        f"against that {change} ({ratio.low:.2f} to {ratio.high:.2f}), at {size:.2f} times its size."
    )


def _passed(packed: ShearsRow, peers: Sequence[ShearsRow]) -> Iterable[str]:
    if not peers or packed.speed is None:
        return
    passing = [peer.label for peer in peers if packed.is_passed_by(peer)]
    yield (
        "Of its peers none is both as accurate and as fast, by what was measured."
        if not passing
        else f"At least as accurate and as fast as that, by what was measured: {'; '.join(passing)}."
    )


def _verdict(after: ShearsRow, before: ShearsRow, n: int) -> str:
    return (
        ""
        if accuracies_differ(after.accuracy, before.accuracy, n)
        else ", a difference that these rows cannot tell from chance"
    )


def _against(ours: ShearsRow, other: ShearsRow, n: int) -> str:
    points = 100 * (ours.accuracy - other.accuracy)
    if not accuracies_differ(ours.accuracy, other.accuracy, n):
        return f"not distinguishable ({points:+.1f} points) from"
    return f"{abs(points):.1f} points {'above' if points > 0 else 'below'}"
