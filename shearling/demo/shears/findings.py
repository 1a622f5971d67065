"""What the numbers of the demo of pruning allow to be said."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from shearling.evaluation.confidence import accuracies_differ

if TYPE_CHECKING:
    from shearling.demo.shears.rows import ShearsRow


def describe(rows: Iterable[ShearsRow], n: int) -> list[str]:
    """What the numbers allow to be said."""
    row = {item.role: item for item in rows}
    ours, lora, sparse, dense = row["ours"], row["lora"], row["sparse"], row["dense"]
    said = []
    said.append(
        f"Fine-tuned, pruned and healed: {lora.accuracy:.1%} becomes {sparse.accuracy:.1%}{_verdict(sparse, lora, n)}."
    )
    said.append(
        f"Then trained under the mask: {ours.accuracy:.1%}, {_against(ours, sparse, n)} that,"
        f" {_against(ours, lora, n)} dense + LoRA; {ours.sparsity:.1%} of the weights are exactly zero."
    )
    if lora.bits_per_byte is not None and ours.bits_per_byte is not None:
        said.append(
            f"The zeros cost language: {lora.bits_per_byte:.2f} to {ours.bits_per_byte:.2f} bits per byte of the "
            f"task's text."
        )
    said += [
        *_speed_of(ours, dense, "Stock OpenVINO has no use for unstructured zeros"),
        *_speed_of(row["packed"], dense, "Packed, int8"),
    ]
    return said


def _speed_of(row: ShearsRow, dense: ShearsRow, what: str) -> Iterable[str]:
    if row.speed is None or dense.speed is None or row.speed.decode_ratio is None:
        return
    ratio, size = row.speed.decode_ratio, row.speed.weight_bytes / dense.speed.weight_bytes
    change = (
        "no difference in speed can be seen"
        if ratio.low <= 1 <= ratio.high
        else f"a token takes {ratio.median:.2f} times as long"
    )
    yield f"{what}: against dense {change} ({ratio.low:.2f} to {ratio.high:.2f}), at {size:.2f} times its size."


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
