"""Finished cells of the benchmark of quality, made by hand."""

from __future__ import annotations

from typing import Any

from benchmarks.quality.cell import CellDocument, SubnetFigures
from shearling.evaluation.confidence import wilson_interval


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
