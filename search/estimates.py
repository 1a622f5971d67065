"""What a search will hold in memory, from the sizes of the frozen model and of the super-adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from search.opening import SearchInputs
from search.settings import SearchSettings
from shearling.elastic.search_space import SearchSpace
from shearling.executors.executor import Workforce
from shearling.model.figures import FLOAT32_BYTES, ModelFigures, read_figures
from shearling.resources import Estimate, available_memory_bytes, cuda_libraries_bytes, free_device_bytes

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


@dataclass(frozen=True)
class MemoryPlan:
    """How candidates are measured.

    Attributes:
        lean: in less memory and more time, with the same numbers.
        estimate: of all processes on this machine.
        remedy: what would take less.
    """

    lean: bool
    estimate: Estimate
    remedy: str


def plan_memory(inputs: SearchInputs, settings: SearchSettings, workforce: Workforce, memory: Memory) -> MemoryPlan:
    """Whether candidates are measured in less memory and more time, and what the processes on this machine take then.

    Args:
        inputs: of the search.
        settings: of the search.
        workforce: what measures.
        memory: auto takes what fits.
    """
    figures, sparse = read_figures(inputs.frozen.path), inputs.frozen.manifest.kind == "sparse"
    count = _processes(workforce)
    fast, less = (
        estimate_search(figures, inputs.space, settings, sparse=sparse, lean=lean).memory_bytes
        for lean in (False, True)
    )
    # Weights on a grid are rounded in float32, and a search of formats rounds those of every candidate once.
    can_be_lean = inputs.space.adapter.grid is None and not settings.layer_formats
    lean = can_be_lean and (memory == "lean" or (memory == "auto" and not _fits(fast, count, workforce)))
    remedy = "Use a smaller batch (--batch-size), or a larger machine"
    if count > 1:
        remedy = "Use fewer --workers"
    elif can_be_lean and not lean:
        remedy = "Add --memory lean"
    return MemoryPlan(lean, Estimate(count * (less if lean else fast)), remedy)


def _fits(one_bytes: int, count: int, workforce: Workforce) -> bool:
    """Whether so many processes fit into this machine, and the one that computes on a device into that."""
    device_bytes = free_device_bytes() if workforce.entry.in_process else None
    held_bytes = one_bytes - LIBRARIES_BYTES - cuda_libraries_bytes()
    return count * one_bytes <= available_memory_bytes() and (device_bytes is None or held_bytes <= device_bytes)


def _processes(workforce: Workforce) -> int:
    """That measure on this machine, as far as it is known: those of a cluster are elsewhere."""
    return 1 if workforce.entry.in_process or workforce.entry.takes_address else workforce.workers_here
