"""Finished cells as rows of a table: what each pruner saves of what Wanda costs, and what it takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.pruning.cell import PruningDocument
from benchmarks.pruning.pruners import DENSE, PRUNERS, REFERENCE
from benchmarks.quality.arms import ratio_title

MOST_TIMES = 10.0
"""Wanda's time that a pruner may take."""
SAME_MEMORY = 1.05
"""Times Wanda's peak that counts as no more: two runs of one pruner differ by less."""
AIMS: Mapping[str, float] = {"0.5": 0.70, "0.6": 0.75, "0.7": 0.75}
"""Ratio -> share of Wanda's excess that is to be gone."""
READINGS = ("", "task", "general", "both")


@dataclass(frozen=True)
class PruningRow:
    """A row of the table.

    Attributes:
        cell: what was measured.
        task_gone: share of the excess over the dense model, in bits per byte of the task's texts, that Wanda has with
            the same ratio and text, and this has not; None where there is no such cell of Wanda's, or none of the dense
            model.
        general_gone: the same of the general text.
        times: time as a multiple of Wanda's on the same processor with as many threads.
        memory: peak as a multiple of Wanda's.
    """

    cell: PruningDocument
    task_gone: float | None
    general_gone: float | None
    times: float | None
    memory: float | None

    @property
    def title(self) -> str:
        """Of the pruner."""
        return PRUNERS[self.cell.pruner].title if self.cell.pruner in PRUNERS else self.cell.pruner

    @property
    def ratio_title(self) -> str:
        """As shown: "50 %", "2:4", or nothing for the dense model."""
        return ratio_title(self.cell.ratio)


def summarise(cells: Sequence[PruningDocument]) -> list[PruningRow]:
    """The rows of the table: the dense model, then ratio by ratio and text by text in the order of the pruners."""
    dense = next((cell for cell in cells if cell.pruner == DENSE), None)
    return [_row(cell, dense, _reference(cell, cells)) for cell in sorted(cells, key=_place)]


def _reference(cell: PruningDocument, cells: Iterable[PruningDocument]) -> PruningDocument | None:
    """Wanda's cell; what reads no text is held against the first of them."""
    found = [
        other
        for other in cells
        if other.pruner == REFERENCE
        and other.ratio == cell.ratio
        and cell.reading in ("", other.reading)
        and (other.task_sha256, other.general_sha256) == (cell.task_sha256, cell.general_sha256)
    ]
    return min(found, key=lambda other: READINGS.index(other.reading), default=None)


def _row(cell: PruningDocument, dense: PruningDocument | None, wanda: PruningDocument | None) -> PruningRow:
    if wanda is None:
        return PruningRow(cell, None, None, None, None)
    task = general = None
    if dense is not None:
        task = _gone(cell.task_bits_per_byte, dense.task_bits_per_byte, wanda.task_bits_per_byte)
        general = _gone(cell.general_bits_per_byte, dense.general_bits_per_byte, wanda.general_bits_per_byte)
    alike = (cell.processor, cell.threads) == (wanda.processor, wanda.threads)
    times = cell.effort_s / wanda.effort_s if alike else None
    return PruningRow(cell, task, general, times, cell.peak_bytes / wanda.peak_bytes)


def _gone(found: float, dense: float, wanda: float) -> float | None:
    return (wanda - found) / (wanda - dense) if wanda > dense else None


def _place(cell: PruningDocument) -> tuple[bool, float | str, int, int, str]:
    pattern, order = ":" in cell.ratio, list(PRUNERS)
    # Patterns behind all shares; the two kinds are never compared with each other.
    ratio: float | str = cell.ratio if pattern else float(cell.ratio or 0)
    known = order.index(cell.pruner) if cell.pruner in order else len(order)
    return pattern, ratio, READINGS.index(cell.reading), known, cell.pruner


@dataclass(frozen=True)
class Finding:
    """What brings most back of one ratio with one text, of what takes at most `MOST_TIMES` Wanda's time.

    Attributes:
        best: the row; frugal: the same of what takes no more memory than Wanda. None where there is none but Wanda.
    """

    ratio: str
    reading: str
    best: PruningRow | None
    frugal: PruningRow | None


def find_best(rows: Iterable[PruningRow]) -> list[Finding]:
    """Of every ratio and text of which Wanda's cell and others are there, in the order of the rows."""
    groups: dict[tuple[str, str], list[PruningRow]] = {}
    for row in rows:
        if row.cell.reading:
            groups.setdefault((row.cell.ratio, row.cell.reading), []).append(row)
    return [
        Finding(ratio, reading, _best(group), _best(row for row in group if (row.memory or 0) <= SAME_MEMORY))
        for (ratio, reading), group in groups.items()
        if any(row.times is not None for row in group)
    ]


def _best(rows: Iterable[PruningRow]) -> PruningRow | None:
    found = [
        (row.task_gone, row)
        for row in rows
        if row.cell.pruner != REFERENCE
        and row.task_gone is not None
        and row.times is not None
        and row.times <= MOST_TIMES
    ]
    return max(found, key=lambda pair: pair[0])[1] if found else None
