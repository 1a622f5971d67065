"""Everything that can be known to fail, checked before hours of work: model, architecture, disk, memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shearling.console import log
from shearling.errors import ArtefactMissing, ModelUnsupported, RecipeInvalid
from shearling.model.checkpoint_safety import CODE_KEYS, CONFIG, check_architecture
from shearling.model.export_support import check_exportable
from shearling.model.figures import ModelFigures, read_figures
from shearling.model.gguf_config import read_gguf_config
from shearling.model.gguf_header import is_gguf, read_header
from shearling.model.head import Head, auto_class
from shearling.model.layers import find_layers
from shearling.model.quantized import check_plain
from shearling.recipe.model import ModelSection
from shearling.recipe.recipe import Recipe
from shearling.resources import Estimate, require
from shearling.strict_json import read_json
from train.estimates import estimate_stage, what_would_fit
from train.package_asset import fetch
from train.super_adapter.adapter_space import build_search_space
from train.super_adapter.reporting import check_reporting
from train.super_adapter.width_space import width_templates

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class ModelSource:
    """A pretrained model that has been found, not yet loaded.

    Attributes:
        path: a GGUF file or a Hugging Face directory.
        model_type: as transformers names the architecture.
        figures: its sizes.
        config: of a GGUF file, where reading it takes a while.
    """

    path: Path
    model_type: str
    figures: ModelFigures
    config: PreTrainedConfig | None = None

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return self.figures.parameters


def preflight(recipe: Recipe, out: Path, *, force: bool = False) -> ModelSource:
    """Check a recipe against this machine and this installation, and say what it will take.

    Args:
        recipe: validated.
        out: the run directory, which need not exist; what is there already is taken to be reused.
        force: nothing is.

    Returns:
        The model to import.

    Raises:
        ArtefactMissing, CheckpointUnsafe, ArtefactCorrupt: the model cannot be read.
        PackageMissing: what the losses are to be reported to is not installed.
        ExportUnavailable: the installed versions cannot export its architecture.
        ModelUnsupported: it is quantized, transformers has it not with this head, or its layers hold matrices that
            pruning would leave out.
        ResourceExhausted: too little disk or memory.
    """
    if recipe.train is not None:
        check_reporting(recipe.train)
    source = find_model(recipe.model)
    check_exportable(source.model_type, head=recipe.model.head)
    check_prunable(source, head=recipe.model.head)
    parts = {
        part: estimate for part, estimate in expected(recipe, source).items() if force or not (out / part).exists()
    }
    disk_bytes = sum(estimate.disk_bytes for estimate in parts.values())
    for part, estimate in parts.items():
        log.print(f"expected for {part}: {estimate}")
        require(Estimate(estimate.memory_bytes, disk_bytes), out, remedy=what_would_fit(recipe, part))
    log.print(
        f"preflight passed: {source.model_type}, {source.parameters / 1e6:.1f} M parameters, from {source.path.name}"
    )
    return source


def expected(recipe: Recipe, source: ModelSource) -> dict[str, Estimate]:
    """What each artefact of the run will take, by its name."""
    by_tensors = not is_gguf(source.path) and recipe.model.head == "language_model"
    return estimate_stage(recipe, source.figures, by_tensors=by_tensors)


def find_model(section: ModelSection) -> ModelSource:
    """Locate the pretrained model and read its type and size without loading it."""
    path = section.path if section.path is not None else fetch(section.asset)  # type: ignore[arg-type] # the section has one source
    if is_gguf(path):
        found = read_gguf_config(read_header(path))
        return ModelSource(path, found.model_type, read_figures(path), found)
    if not (path / CONFIG).is_file():
        raise ArtefactMissing(
            "neither a GGUF file nor a Hugging Face model directory",
            where=path,
            remedy="Check model.path in the recipe",
        )
    config = read_json(path / CONFIG)
    check_plain(config, where=path / CONFIG)
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise ModelUnsupported("config.json names no model_type", where=path)
    return ModelSource(path, model_type, read_figures(path))


def check_prunable(source: ModelSource, *, head: Head = "language_model") -> None:
    """Find the layers of a model in its configuration alone: what cannot be pruned is refused before it is imported.

    Args:
        source: see `find_model`.
        head: what the model will be for.

    Raises:
        ModelUnsupported: see `check_architecture` and `find_layers`.
    """
    from transformers import AutoConfig

    config = source.config
    if config is None:
        stored = {key: value for key, value in read_json(source.path / CONFIG).items() if key not in CODE_KEYS}
        check_architecture(stored, head=head, where=source.path / CONFIG)
        try:
            config = AutoConfig.for_model(stored.pop("model_type"), **stored)
        except (ValueError, KeyError, TypeError, AttributeError):
            # The import says what is wrong with it.
            return
    find_layers(_without_weights(config, head))


def _without_weights(config: PreTrainedConfig, head: Head | None = None) -> PreTrainedModel:
    import torch

    from shearling.model.experts import separate_experts

    with torch.device("meta"):
        model: PreTrainedModel = auto_class(config, head).from_config(config, trust_remote_code=False)
    separate_experts(model)
    return model


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
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(base), local_files_only=True, trust_remote_code=False)
    _check_windows(recipe, getattr(config, "max_position_embeddings", None))
    if recipe.adapter is not None:
        build_search_space(
            recipe.adapter,
            find_layers(_without_weights(config)),
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
