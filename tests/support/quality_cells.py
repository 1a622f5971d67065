"""Cells of the benchmark of quality: a task that tiny models learn, and finished cells made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.quality.cell import CellDocument, SubnetFigures
from benchmarks.quality.tasks import BenchmarkTask
from shearling.evaluation.confidence import wilson_interval
from tests.support.tiny_runs import write_headlines

CHOICES = {"choices": [" no", " yes"], "gold": "{{ label }}"}


def headlines_task(directory: Path, answers: dict[str, Any]) -> BenchmarkTask:
    """Eighty headlines in a file of the directory; `answers` as in a recipe's `[task]`."""
    return BenchmarkTask(
        name="headlines",
        title="headlines",
        source={"path": str(write_headlines(directory / "headlines.jsonl", 80))},
        text="{{ headline }}",
        prompt="{{ text }}\nSarcastic:",
        answers=answers,
        max_length=32,
        rows={"train": 40, "validation": 12, "test": 14},
        split={"train": 0.5, "validation": 0.25, "test": 0.25},
    )


def subnet_figures(
    accuracy: float,
    *,
    subnet: str = "largest",
    bits_per_byte: float | None = 1.2,
    n: int = 100,
    predicted: float | None = None,
) -> SubnetFigures:
    """Figures of a sub-network that answers the first rows right; and what the search predicts, from as many rows."""
    right = round(accuracy * n)
    return SubnetFigures(
        subnet=subnet,  # type: ignore[arg-type] # one of the names
        n=n,
        accuracy=accuracy,
        interval=wilson_interval(accuracy, n),
        loss=0.5,
        rows_sha256="0" * 64,
        answers="1" * right + "0" * (n - right),
        bits_per_byte=bits_per_byte,
        predicted=None
        if predicted is None
        else {"held_back": {"n": n, "accuracy": predicted, "interval": list(wilson_interval(predicted, n))}},
    )


def cell_document(
    model: str,
    arm: str,
    task: str,
    *subnets: SubnetFigures,
    ratio: str = "",
    seed: int = 0,
    recipe: dict[str, Any] | None = None,
    before: float | None = 1.0,
) -> CellDocument:
    """A finished cell; without sub-networks it has one."""
    return CellDocument(
        schema="shearling.quality/1",
        model=model,
        arm=arm,
        ratio=ratio,
        task=task,
        seed=seed,
        recipe=recipe or {},
        sparsity=0.5 if ratio else 0.0,
        bits_per_byte=before,
        general_text_sha256="1" * 64,
        subnets=subnets or (subnet_figures(0.5),),
        prepare_s=30.0,
        train_s=60.0,
        search_s=30.0,
        precision="fp32",
        threads=1,
        created="2026-01-01T00:00:00Z",
    )
