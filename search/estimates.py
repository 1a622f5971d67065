"""What a search will hold in memory, from the sizes of the frozen model and of the super-adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from search.opening import SearchInputs
from search.settings import SearchSettings
from shearling.elastic.search_space import SearchSpace
from shearling.executors.executor import Workforce, available_cpus
from shearling.model.figures import FLOAT32_BYTES, ModelFigures, read_figures
from shearling.resources import Estimate, available_memory_bytes, cuda_libraries_bytes, require

Memory = Literal["auto", "fast", "lean"]

LIBRARIES_BYTES = 750 * 2**20
"""Python, torch, transformers and the harness, loaded, in a new environment."""
MERGING_BYTES = 13
"""An entry of the largest matrix while it is merged: the sum, the mask as numbers, and the weight in another type."""
ADAPTER_BYTES = 8
"""A parameter of the super-adapter: as it is read, and in its layer."""
ROW_TOKENS = 256
"""Of a row of a task, at most, in an estimate."""


def estimate_search(
    figures: ModelFigures, space: SearchSpace, settings: SearchSettings, *, sparse: bool, lean: bool
) -> Estimate:
    """Of a process that measures.

    Args:
        figures: of the frozen model.
        space: of the super-adapter.
        settings: of the search.
        sparse: the frozen model is pruned.
        lean: see `shearling.elastic.elastic_lora.ElasticLoraLinear`.
    """
    weights = figures.stored_bytes if lean else FLOAT32_BYTES * figures.parameters
    masked = space.adapter.masked_training
    bits = figures.linear_parameters // 8
    masks = sparse * bits + masked * (bits if lean else figures.linear_parameters)
    merged = FLOAT32_BYTES * figures.linear_parameters if masked and not lean else 0
    modules = sum(len(group.modules) for group in space.groups if group.kind == "rank")
    adapter = ADAPTER_BYTES * modules * space.adapter.r_max * (figures.hidden + figures.widest)
    tokens = settings.batch_size * ROW_TOKENS // 4
    states = tokens * FLOAT32_BYTES * (8 * figures.hidden + 3 * figures.widest)
    head = FLOAT32_BYTES * figures.table if lean and figures.table_bytes < FLOAT32_BYTES * figures.table else 0
    working = max(MERGING_BYTES * figures.matrix, head)
    return Estimate(LIBRARIES_BYTES + cuda_libraries_bytes() + weights + masks + merged + adapter + states + working)


def plan_memory(
    inputs: SearchInputs, settings: SearchSettings, workforce: Workforce, memory: Memory
) -> tuple[bool, Estimate]:
    """Whether candidates are measured in less memory and more time, and what the processes on this machine take then.

    Args:
        inputs: of the search.
        settings: of the search.
        workforce: what measures.
        memory: auto takes what fits.
    """
    figures, sparse = read_figures(inputs.frozen.path), inputs.frozen.manifest.kind == "sparse"
    count = _processes(workforce)

    def of_all(*, lean: bool) -> Estimate:
        one = estimate_search(figures, inputs.space, settings, sparse=sparse, lean=lean)
        return Estimate(count * one.memory_bytes)

    # Weights on a grid are rounded in float32, and a search of formats rounds those of every candidate once.
    if inputs.space.adapter.grid is not None or settings.layer_formats:
        return False, of_all(lean=False)
    fast = of_all(lean=False)
    lean = memory == "lean" or (memory == "auto" and fast.memory_bytes > available_memory_bytes())
    return lean, of_all(lean=True) if lean else fast


def require_memory(estimate: Estimate, where: Path, *, lean: bool, workforce: Workforce) -> None:
    """Refuse a search that cannot fit.

    Raises:
        ResourceExhausted: says what would.
    """
    remedy = "Use a smaller batch (--batch-size), or a larger machine"
    if _processes(workforce) > 1:
        remedy = "Use fewer --workers"
    elif not lean:
        remedy = "Add --memory lean"
    require(estimate, where, remedy=remedy)


def _processes(workforce: Workforce) -> int:
    """That measure on this machine, as far as it is known: those of a cluster are elsewhere."""
    if workforce.entry.in_process or workforce.entry.takes_address:
        return 1
    return workforce.workers or available_cpus()
