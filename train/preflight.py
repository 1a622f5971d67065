"""Everything that can be known to fail, checked before hours of work: model, architecture, disk, memory."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from shearling.console import log
from shearling.errors import ArtefactMissing, ModelUnsupported, RecipeInvalid, ResourceExhausted
from shearling.model.checkpoint_safety import CONFIG, weight_files
from shearling.model.export_support import check_exportable
from shearling.model.gguf_header import is_gguf, read_header
from shearling.model.head import auto_class
from shearling.model.layers import find_layers
from shearling.recipe.model import ModelSection
from shearling.recipe.recipe import Recipe
from shearling.strict_json import read_json
from train.package_asset import fetch
from train.super_adapter.adapter_space import build_search_space
from train.super_adapter.reporting import check_reporting
from train.super_adapter.width_space import width_templates

FLOAT32_BYTES = 4
WORKING_BYTES = 2 * 2**30
"""Activations, logits and libraries of a small training run."""


@dataclass(frozen=True)
class ModelSource:
    """A pretrained model that has been found, not yet loaded.

    Attributes:
        path: a GGUF file or a Hugging Face directory.
        model_type: as transformers names the architecture.
        parameters: number of weights.
    """

    path: Path
    model_type: str
    parameters: int


def preflight(recipe: Recipe, out: Path) -> ModelSource:
    """Check a recipe against this machine and this installation.

    Args:
        recipe: validated.
        out: the run directory, which need not exist.

    Returns:
        The model to import.

    Raises:
        ArtefactMissing, CheckpointUnsafe, ArtefactCorrupt: the model cannot be read.
        PackageMissing: what the losses are to be reported to is not installed.
        ExportUnavailable: the installed versions cannot export its architecture.
        ResourceExhausted: too little disk or memory.
    """
    if recipe.train is not None:
        check_reporting(recipe.train)
    source = find_model(recipe.model)
    check_exportable(source.model_type, head=recipe.model.head)
    stored = 1 + (recipe.model.adaptation is not None) + (recipe.sparsity is not None)
    check_disk(out, needed_bytes=source.parameters * FLOAT32_BYTES * stored)
    check_memory(needed_bytes=source.parameters * FLOAT32_BYTES * copies_in_memory(recipe) + WORKING_BYTES)
    log.print(
        f"preflight passed: {source.model_type}, {source.parameters / 1e6:.1f} M parameters, from {source.path.name}"
    )
    return source


def copies_in_memory(recipe: Recipe) -> int:
    """The most copies of the model in float32 that a stage holds.

    The frozen weights, and while training the merged ones that the backward keeps, and a teacher; while healing the two
    moments of Adam, and the dense model.
    """
    train = recipe.train
    training = 1 if train is None else 2 + (train.teacher is not None)
    healing = 4 if recipe.sparsity is not None and recipe.sparsity.healing is not None else 1
    return max(training, healing)


def find_model(section: ModelSection) -> ModelSource:
    """Locate the pretrained model and read its type and size without loading it."""
    path = section.path if section.path is not None else fetch(section.asset)  # type: ignore[arg-type] # the section has one source
    if is_gguf(path):
        return ModelSource(path, read_header(path).require("general.architecture"), _count_gguf(path))
    if not (path / CONFIG).is_file():
        raise ArtefactMissing(
            "neither a GGUF file nor a Hugging Face model directory",
            where=path,
            remedy="Check model.path in the recipe",
        )
    model_type = read_json(path / CONFIG).get("model_type")
    if not isinstance(model_type, str):
        raise ModelUnsupported("config.json names no model_type", where=path)
    return ModelSource(path, model_type, _count_safetensors(path))


def check_structure(recipe: Recipe, base: Path) -> None:
    """Check that adapter groups and calibration windows fit the model, before pruning rather than after; no weight is
    loaded.

    Args:
        recipe: its [adapter] section names modules.
        base: an imported model, whose configuration is clean.

    Raises:
        ModelUnsupported: no transformer layers are found.
        RecipeInvalid: a group names what no layer has, or a window is longer than the positions that the model learnt.
    """
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(base), local_files_only=True, trust_remote_code=False)
    _check_windows(recipe, getattr(config, "max_position_embeddings", None))
    if recipe.adapter is not None:
        with torch.device("meta"):
            transformer = find_layers(auto_class(config).from_config(config, trust_remote_code=False))
        build_search_space(
            recipe.adapter,
            transformer,
            model_type=config.model_type,
            widths=width_templates(recipe.width, config),
            quantization=recipe.quantization,
        )


def _check_windows(recipe: Recipe, positions: int | None) -> None:
    pruned = recipe.sparsity is not None and recipe.sparsity.measured
    reordered = recipe.width is not None and recipe.width.reorder == "wanda"
    healed = recipe.sparsity is not None and recipe.sparsity.healing is not None
    used = {
        "sparsity.calibration": pruned,
        "width.calibration": reordered,
        "sparsity.healing": healed,
        "quantization.calibration": recipe.quantization is not None,
    }
    for section in (name for name, is_used in used.items() if is_used and positions is not None):
        outer, _, inner = section.partition(".")
        length = getattr(getattr(recipe, outer), inner).seq_len
        if length > positions:
            raise RecipeInvalid(
                f"windows of {length} tokens, the model has {positions} positions",
                where=f"{section}.seq_len",
                remedy=f"Give {positions} or less",
            )


def check_disk(out: Path, *, needed_bytes: int) -> None:
    """Raise ResourceExhausted where the disk of `out` has less than `needed_bytes` free."""
    existing = next(parent for parent in (out.resolve(), *out.resolve().parents) if parent.exists())
    free_bytes = shutil.disk_usage(existing).free
    if free_bytes < needed_bytes:
        raise ResourceExhausted(
            f"{needed_bytes} bytes of disk needed, {free_bytes} free",
            where=out,
            remedy="Free space, or choose another --output",
        )


def check_memory(*, needed_bytes: int) -> None:
    """Raise ResourceExhausted where less than `needed_bytes` of memory are available."""
    import psutil

    available_bytes = psutil.virtual_memory().available
    if available_bytes < needed_bytes:
        raise ResourceExhausted(
            f"about {needed_bytes} bytes of memory needed, {available_bytes} available",
            remedy="Use a smaller model or a larger machine",
        )


def _count_gguf(path: Path) -> int:
    from gguf import GGUFReader

    return sum(int(tensor.n_elements) for tensor in GGUFReader(path).tensors)


def _count_safetensors(directory: Path) -> int:
    import math

    from safetensors import safe_open

    total = 0
    for path in weight_files(directory):
        with safe_open(path, framework="np") as file:
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 (not a mapping)
    return total
