"""Tiny runs whose layers choose their zeros and their formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from search.opening import SearchableRun, open_inputs, open_run
from shearling.elastic.mixture import LayerFormat
from shearling.elastic.super_network import SuperNetwork, assemble_super_network
from shearling.model.checkpoint import save_model
from shearling.model.layers import find_layers
from shearling.run import Run
from tests.support.tiny_models import tiny_tokenizer, wide_model
from tests.support.tiny_runs import tiny_recipe
from train.stage import run_recipe

RATIOS = (0.6, 0.75)
FORMATS: tuple[LayerFormat, ...] = ("int8", "int4")


def mixed_run(directory: Path, **options: Any) -> Run:
    """A run of three steps, with variants where it is sparse; wide enough for groups of 32 unless it has widths."""
    if "width" not in options:
        model = wide_model()
        for linear in find_layers(model).linears().values():
            torch.nn.init.normal_(linear.weight, std=0.2)
        (directory / "source").mkdir(parents=True)
        save_model(model, tiny_tokenizer(), directory / "source")
    variants = list(RATIOS) if options.get("sparse", True) else None
    run_recipe(tiny_recipe(directory, train={"steps": 3}, variants=variants, **options), directory / "run")
    return Run(directory / "run")


def open_mixed(
    run: Run, *, ratios: tuple[float, ...] = RATIOS, formats: tuple[LayerFormat, ...] = FORMATS
) -> SearchableRun:
    """The run with the space of its mixtures."""
    return open_run(run).mixed(ratios=ratios, formats=formats)


def mixed_network(opened: SearchableRun, *, lean: bool = False) -> SuperNetwork:
    """The super-network of such a run."""
    inputs = open_inputs(opened, task=None)
    return assemble_super_network(inputs.frozen, inputs.adapter, inputs.space, lean=lean, variants=inputs.variants)


def one_of_each(opened: SearchableRun) -> dict[str, int]:
    """A choice in which layers differ: every group takes the value at its place, by turns."""
    return {group.id: group.values[place % len(group.values)] for place, group in enumerate(opened.space.groups)}
