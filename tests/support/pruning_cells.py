"""Finished cells of the benchmark of pruning, made by hand."""

from __future__ import annotations

from typing import Any, Literal

from benchmarks.pruning.cell import PruningDocument


def pruning_document(
    pruner: str,
    task: float,
    general: float,
    *,
    ratio: str = "0.5",
    reading: Literal["task", "general", "both", ""] = "task",
    recipe: dict[str, Any] | None = None,
    minutes: float = 1.0,
    processor_minutes: float | None = None,
    peak_gib: float = 1.0,
    threads: int = 1,
    processor: str = "a processor",
) -> PruningDocument:
    """A finished cell.

    Args:
        pruner: of the table.
        task: bits per byte of the task's texts.
        general: of the general text.
        processor_minutes: as many as of the wall where it is None.
    """
    used = minutes if processor_minutes is None else processor_minutes
    return PruningDocument(
        schema="shearling.pruning/1",
        model="smollm2",
        pruner=pruner,
        ratio=ratio,
        reading=reading,
        recipe=recipe or {},
        sparsity=0.5 if ratio else 0.0,
        task_bits_per_byte=task,
        task_sha256="0" * 64,
        general_bits_per_byte=general,
        general_sha256="1" * 64,
        seconds=60 * minutes,
        processor_s=60 * used,
        peak_bytes=int(peak_gib * 2**30),
        threads=threads,
        precision="bf16",
        processor=processor,
        created="2026-01-01T00:00:00Z",
    )
