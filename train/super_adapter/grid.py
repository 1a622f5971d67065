"""The grid of integers that a super-adapter is trained on: the frozen model rounded once, on calibration text."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shearling.artefact import sha256_file
from shearling.elastic.grid_file import WeightGrids
from shearling.errors import RecipeInvalid
from shearling.evaluation.precision import resolve_precision
from shearling.evaluation.task import TaskRow
from shearling.model.checkpoint import hash_weights
from shearling.model.head import classifies
from shearling.model.layers import TransformerLayers, find_layers
from shearling.quantization.layerwise import SMALLEST_GROUP, narrowed_group, round_layers
from shearling.recipe.quantization import DEFAULT_GROUP_SIZE, GROUP_SIZES, QuantizationSection
from train.calibration import calibration_blocks, calibration_file

if TYPE_CHECKING:
    from torch import nn

    from shearling.artefact import Artefact


def find_grids(
    model: nn.Module,
    tokenizer: Any,
    section: QuantizationSection,
    *,
    frozen: Artefact,
    rows: Sequence[TaskRow],
    seed: int,
) -> WeightGrids:
    """Round every linear layer of a frozen model.

    Args:
        model: of the artefact; not modified, and a copy of it is held meanwhile.
        tokenizer: of the model.
        section: [quantization].
        frozen: what the grids belong to.
        rows: of the train split, for calibration.
        seed: places the windows.

    Raises:
        RecipeInvalid: see `grid_groups`, or the text is too short.
    """
    student = copy.deepcopy(model).requires_grad_(False).eval()
    transformer = find_layers(student)
    groups = grid_groups(transformer, section)
    blocks = calibration_blocks(
        section.calibration,
        rows,
        tokenizer,
        classifies=classifies(frozen.path),
        seed=seed,
        where="quantization.calibration",
    )
    bf16 = resolve_precision("auto", device=next(student.parameters()).device.type) == "bf16"
    layers = round_layers(student, transformer, blocks, groups, bits=section.bits, bf16=bf16)
    return WeightGrids(section.bits, hash_weights(frozen.path), layers.matrices)


def grid_groups(transformer: TransformerLayers, section: QuantizationSection) -> dict[str, int]:
    """How many columns of each linear layer share a scale, by absolute path.

    Args:
        transformer: of the model, on any device, also meta.
        section: [quantization].

    Raises:
        RecipeInvalid: the group that was asked for does not divide a layer's inputs, or without one no group does.
    """
    widths = {path: linear.in_features for path, linear in transformer.linears().items()}
    if section.bits == 8:
        return widths
    if section.group_size is not None:
        _check_group(section.group_size, widths)
    size = section.group_size or DEFAULT_GROUP_SIZE
    groups = {path: narrowed_group(width, size) for path, width in widths.items()}
    odd = next((path for path, size in groups.items() if not size), None)
    if odd is not None:
        raise RecipeInvalid(
            f"no group of {SMALLEST_GROUP} columns or more divides the inputs of {odd}",
            where="quantization.group_size",
            remedy="Set bits = 8, which has one scale a row",
        )
    return groups


def _check_group(size: int, widths: Mapping[str, int]) -> None:
    path = next((path for path, width in widths.items() if width % size), None)
    if path is not None:
        able = [str(item) for item in GROUP_SIZES if not any(width % item for width in widths.values())]
        raise RecipeInvalid(
            f"a group of {size} does not divide the {widths[path]} inputs of {path}",
            where="quantization.group_size",
            remedy=f"Set {' or '.join(able)}" if able else "Leave it out, for smaller groups where they are needed",
        )


def grid_inputs(section: QuantizationSection | None) -> dict[str, str]:
    """What decides a grid beside the recipe and the task: the file that it is calibrated on."""
    file = None if section is None else calibration_file(section.calibration)
    return {} if file is None or not file.is_file() else {"quantization_text": sha256_file(file)}
