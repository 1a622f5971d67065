"""The `sparse` artefact: the pruned model, the mask that training must use, and the zeros of every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pydantic

from shearling.artefact import Artefact, open_artefact, sha256_file, write_artefact
from shearling.calibration.propagation import IN_MEMORY, Residence
from shearling.console import log
from shearling.elastic.mask import MASK_FILE, Masks, check_masked_zeros, count_pruned, save_masks
from shearling.evaluation.precision import resolve_precision
from shearling.model.checkpoint import load_model, load_tokenizer, save_description, save_model
from shearling.model.head import is_classifier
from shearling.model.layers import find_layers
from shearling.model.skeleton import Skeleton, open_skeleton
from shearling.model.weight_shards import writing_weights
from shearling.recipe.calibration import CalibrationSection
from shearling.recipe.recipe import section_as_json
from shearling.recipe.sparsity import SparsitySection
from shearling.strict_json import Document, write_document
from train.sparsity.allocation.evolution import evolved_ratios
from train.sparsity.allocation.outliers import outlier_ratios
from train.sparsity.healing import Healed, heal
from train.sparsity.pattern import Pattern, make_pattern
from train.sparsity.pruned_layers import PrunedLayers
from train.sparsity.sparsify import LayerErrors, Sparsified, sparsify

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

SPARSITY_FILE = "sparsity.json"
BATCH_SIZE = 4
"""Samples that run together: a quarter faster than one by one on two cores, with the same mask."""


class ModuleSparsity(Document):
    """One pruned matrix; `kept_zeros` are zeros that the pretrained model had among the kept weights."""

    shape: tuple[int, int]
    weights: int
    pruned: int
    kept_zeros: int
    sparsity: float


class SparsityReport(Document):
    """The content of `sparsity.json`.

    Attributes:
        method: how weights were scored.
        target: the share asked for.
        pattern: among which weights the lowest scores were taken.
        achieved_scope: pruned share of the pruned modules.
        achieved_layers: pruned share of all matrices inside the transformer layers, whatever module has them; None in
            reports of versions that did not count it.
        achieved_model: pruned share of all parameters, tied ones counted once.
        zeros: pruned weights.
        layers: pruned share of each transformer layer.
        modules: by absolute module path.
        left_dense: parameters of two and more dimensions inside the layers that no linear has, and that were not
            pruned, such as routers: path and number of weights.
        errors: of each layer's outputs on the calibration text, where layers were tuned.
        healed: how far the predictions were from the dense model's, where they were brought nearer.
    """

    schema_: Literal["shearling.sparsity/1"] = pydantic.Field("shearling.sparsity/1", alias="schema")
    method: str
    target: float
    pattern: str
    achieved_scope: float
    achieved_layers: float | None = None
    achieved_model: float
    zeros: int
    layers: tuple[float, ...]
    modules: dict[str, ModuleSparsity]
    left_dense: dict[str, int] = pydantic.Field(default_factory=dict)
    errors: tuple[LayerErrors, ...] | None = None
    healed: Healed | None = None


def write_sparse(
    base: Artefact,
    destination: Path,
    *,
    section: SparsitySection,
    calibration: Sequence[Tensor],
    seed: int,
    healing: Sequence[Tensor] = (),
    texts: Sequence[Path] = (),
    force: bool = False,
) -> Artefact:
    """Prune the model of a `base` artefact into a `sparse` one.

    Args:
        base: verified; scores are computed in float32, weights are stored in its own dtype.
        destination: where the artefact will stand.
        section: [sparsity] of the recipe: method, ratio, pattern, and where the calibration text came from.
        calibration: token ids [tokens] of each sample; unused by methods that need none.
        seed: that the calibration text was drawn with.
        healing: token ids [tokens] of the windows that healing reads, where the section asks for it.
        texts: the files that it was drawn from; their digest is kept.
        force: replace an artefact that is already there.

    Raises:
        RecipeInvalid: the method needs calibration text, and there is none.
        ArtefactError: the base cannot be pruned so; see `sparsify`.
        OutputExists, OutputLocked, ResourceExhausted: the destination cannot be written.
    """
    details = base.manifest.details
    with write_artefact(destination, kind="sparse", parents={"base": base}, seed=seed, force=force) as draft:
        tokenizer = load_tokenizer(base.path)
        skeleton = open_skeleton(base.path) if section.by_layers else None
        if skeleton is not None and skeleton.layers_stand_alone:
            model = skeleton.model
            report, masks = _prune_by_layers(skeleton, draft.directory, section, calibration, seed=seed)
            save_description(model, tokenizer, draft.directory, details["torch_dtype"])
        else:
            model = load_model(base.path)
            report, masks = _prune_whole(model, base, section, calibration, healing, seed=seed)
            save_model(model, tokenizer, draft.directory)
        if report.left_dense:
            log.print(
                f"{len(report.left_dense)} matrices of the layers are no linears and stay dense, such as "
                f"{next(iter(report.left_dense))}: {report.achieved_layers:.2%} of all in the layers is pruned"
            )
        save_masks(draft.directory / MASK_FILE, masks)
        write_document(draft.directory / SPARSITY_FILE, report)
        inherited = (
            "model_id",
            "license",
            "model_type",
            "torch_dtype",
            "num_layers",
            "tie_word_embeddings",
            "parameters",
            "classes",
            "head_seed",
        )
        draft.details |= {key: details[key] for key in inherited if key in details}
        draft.details |= sparsity_inputs(section, seed=seed, texts=texts)
        draft.details["sparsity"] = {
            **report.model_dump(include={"method", "target", "pattern", "achieved_scope", "achieved_model", "zeros"}),
            "scope": list(find_layers(model).linear_names),
            "calibration": _calibration_facts(section, seed),
        }
    return open_artefact(destination, kind="sparse")


def _prune_by_layers(
    skeleton: Skeleton, directory: Path, section: SparsitySection, calibration: Sequence[Tensor], *, seed: int
) -> tuple[SparsityReport, Masks]:
    """From the files of the base to those of the artefact, with one layer in memory."""
    with writing_weights(directory, skeleton.described(None)) as writer:
        layers = PrunedLayers(skeleton, writer)
        sparsified = sparsify(
            skeleton.model,
            calibration,
            method=section.method,
            pattern=_patterns(section, skeleton.model, calibration, seed=seed, residence=layers),
            reconstruction=section.reconstruction,
            seed=seed,
            batch_size=BATCH_SIZE,
            residence=layers,
            done=layers.done,
        )
        layers.copy_others()
    return describe_sparsity(skeleton.model, sparsified, section, layers.nonzero), sparsified.masks


def _prune_whole(
    model: PreTrainedModel,
    base: Artefact,
    section: SparsitySection,
    calibration: Sequence[Tensor],
    healing: Sequence[Tensor],
    *,
    seed: int,
) -> tuple[SparsityReport, Masks]:
    """In place, for what looks at the whole model at once; the model is in the type of the base then."""
    import torch

    details = base.manifest.details
    patterns = _patterns(section, model, calibration, seed=seed)
    sparsified = sparsify(
        model,
        calibration,
        method=section.method,
        pattern=patterns,
        reconstruction=section.reconstruction,
        seed=seed,
        batch_size=BATCH_SIZE,
    )
    healed = None
    if section.healing is not None:
        bf16 = resolve_precision("auto", device=next(model.parameters()).device.type) == "bf16"
        dense = load_model(base.path, dtype="bfloat16" if bf16 else "float32")
        healed = heal(model, dense, sparsified.masks, healing, section.healing, classifier=is_classifier(model.config))
        del dense
    linears = find_layers(model).linears()
    nonzero = {path: int(linears[path].weight.count_nonzero()) for path in sparsified.masks}
    report = describe_sparsity(model, sparsified, section, nonzero, healed=healed)
    # Exact where the method leaves what it keeps as it was: every surviving value came from this dtype.
    model.to(getattr(torch, details["torch_dtype"]))
    check_masked_zeros(model, sparsified.masks)
    return report, sparsified.masks


def sparsity_inputs(section: SparsitySection, *, seed: int, texts: Sequence[Path]) -> dict[str, Any]:
    """What decides the mask, beside the base; `texts` are the files that the calibration was drawn from."""
    digests = [sha256_file(text) for text in texts if text.is_file()] if section.calibrated else []
    digest = None if not digests else "+".join(digests)
    return {"recipe": section_as_json(section), "seed": seed, "calibration_text": digest}


def _patterns(
    section: SparsitySection,
    model: nn.Module,
    calibration: Sequence[Tensor],
    *,
    seed: int,
    residence: Residence = IN_MEMORY,
) -> list[Pattern]:
    """The pattern of each layer."""
    match section.allocation:
        case "uniform":
            ratios: Sequence[float] = [section.ratio] * len(find_layers(model).layers)
        case "owl":
            ratios = outlier_ratios(model, calibration, section.ratio, residence=residence)
        case "searched":
            ratios = evolved_ratios(model, calibration, section.ratio, seed=seed)
    return [make_pattern(section.pattern, ratio=ratio) for ratio in ratios]


def describe_sparsity(
    model: nn.Module,
    sparsified: Sparsified,
    section: SparsitySection,
    nonzero: Mapping[str, int],
    *,
    healed: Healed | None = None,
) -> SparsityReport:
    """Count what was pruned, per module, per layer and over the model.

    Args:
        model: pruned, or its skeleton.
        sparsified: masks of every pruned module, and errors of the layers.
        section: what was asked for.
        nonzero: path of every pruned module -> its weights that are not zero.
        healed: what healing brought.
    """
    masks = sparsified.masks
    transformer, pruned = find_layers(model), count_pruned(masks)
    modules = {
        path: ModuleSparsity(
            shape=(mask.shape[0], mask.shape[1]),
            weights=mask.numel(),
            pruned=pruned[path],
            kept_zeros=mask.numel() - nonzero[path] - pruned[path],
            sparsity=pruned[path] / mask.numel(),
        )
        for path, mask in masks.items()
    }
    layers = [
        [modules[transformer.module_path(index, name)] for name in transformer.linear_names]
        for index in range(len(transformer.layers))
    ]
    zeros, weights = sum(pruned.values()), sum(module.weights for module in modules.values())
    left_dense = transformer.left_dense()
    return SparsityReport(
        method=section.method,
        target=section.ratio,
        pattern=make_pattern(section.pattern, ratio=section.ratio).name,
        achieved_scope=zeros / weights,
        achieved_layers=zeros / (weights + sum(left_dense.values())),
        achieved_model=zeros / sum(parameter.numel() for parameter in model.parameters()),
        zeros=zeros,
        layers=tuple(
            sum(module.pruned for module in layer) / sum(module.weights for module in layer) for layer in layers
        ),
        modules=modules,
        left_dense=left_dense,
        errors=sparsified.errors or None,
        healed=healed,
    )


def _dataset(text: CalibrationSection) -> str:
    file = text.path.name if text.path is not None else text.asset.member if text.asset is not None else None
    return "task/train" if file is None else file + " and task/train" * text.task_rows


def _calibration_facts(section: SparsitySection, seed: int) -> dict[str, Any] | None:
    if not section.calibrated:
        return None
    text = section.calibration
    return {
        "dataset": _dataset(text),
        "samples": text.samples,
        "seq_len": text.seq_len,
        "seed": seed,
    }
