"""The model that is exported: a sub-network merged, or a frozen model, with its logits on the fixed inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.formats.export_format import Blocks, ChosenAdapter, ExportSubject
from export.merge import merge
from export.packing.linear_graph import module_path
from export.plan import ExportPlan, PlannedMerge, integers_of
from export.quantization.quantize import as_matrix
from export.verification.parity import fixed_blocks, torch_logits
from export.verification.parity_check import MergedReference, ParityCheck, check_merge, weights_precision
from export.verification.reading import read_held_back
from export.verification.size import check_size
from export.verification.task_check import TaskReference, ask_reference
from export.verification.zeros import ZeroCheck, check_zeros
from shearling.artefact import Artefact
from shearling.elastic.mask import MASK_FILE, Masks, check_masked_zeros, load_masks
from shearling.elastic.narrowing import cut_masks
from shearling.elastic.size import measure_network
from shearling.elastic.super_network import SuperNetwork, assemble_super_network
from shearling.elastic.weight_grid import LayerGrid
from shearling.errors import ArtefactMismatch
from shearling.model.checkpoint import load_model, load_tokenizer
from shearling.model.weight_shards import Dtype
from shearling.registry.number_formats import NUMBER_FORMATS

if TYPE_CHECKING:
    from torch import nn

    from shearling.kernel.packed_format import Matrix
    from shearling.quantization.rounding import Rounded


@dataclass(frozen=True)
class MergedModel:
    """What is written, and what every file of it is held against.

    Attributes:
        merge_check: of the merge; None where there was nothing to merge.
        adapter_params: weights of the chosen adapter.
        zeros_left: what a dense merge left of the frozen model's zeros; None where it had none, or they are kept.
    """

    subject: ExportSubject
    reference: MergedReference
    merge_check: ParityCheck | None
    adapter_params: int
    zeros_left: ZeroCheck | None = None


def prepare_model(plan: ExportPlan, *, checkpoint: Path) -> MergedModel:
    """Make the model that the plan speaks of, and measure what a merge changed.

    Its weights have the type of the frozen model's files, and are views of files: of the frozen model's, or of those
    that the merge writes.

    Args:
        plan: what is exported.
        checkpoint: an empty directory for merged weights; lives as long as the model.

    Raises:
        ArtefactError: a part does not load, or does not fit the others.
        ParityFailed: the merged model has not the size that its description counts.
    """
    return _load_unadapted(plan) if plan.merge is None else _merge_subnet(plan, plan.merge, checkpoint)


def _merge_subnet(plan: ExportPlan, planned: PlannedMerge, checkpoint: Path) -> MergedModel:
    opened, mode = planned.opened, planned.mode
    choice, cuts = opened.subnet.choice, opened.space.cuts(opened.subnet.choice)
    dtype: Dtype | None = "float32" if planned.in_float32 else None
    frozen = load_model(opened.frozen.path, dtype=dtype)
    network = assemble_super_network(
        opened.frozen, opened.adapter, opened.space, lean=True, model=frozen, variants=opened.variants
    )
    masks = network.masks_of(choice)
    if mode == "masked" and masks is None:
        raise ArtefactMismatch("a masked merge needs a sparse base", where=opened.frozen.path)
    blocks = _blocks(network.model, network.tokenizer)
    network.activate(choice)
    # Each merged weight is made for the product that reads it, and given up again.
    unmerged = torch_logits(network.model, blocks, head=plan.head)
    expected, adapter_params = measure_network(network).parameters(cuts), network.adapter_params(choice)
    weights = None if mode == "separate" else checkpoint
    stored = plan.request.weight_format
    chosen = _matrices(network.integers()) if NUMBER_FORMATS.get(stored).integers else {}
    model = merge(network, choice, mode, masks=masks, checkpoint=weights)
    if weights is not None:
        check_size(model, expected)
    # A dense merge promises no zeros.
    kept = None if masks is None or mode == "dense" else cut_masks(masks, cuts)
    trained_under = masks if opened.space.adapter.masked_training else None
    subject = ExportSubject(
        model=model,
        tokenizer=network.tokenizer,
        frozen=plan.frozen.path,
        masks=kept,
        separate=mode == "separate",
        sparsity=_sparsity_facts(kept, plan.frozen),
        adapter=ChosenAdapter(network, choice, opened.subnet.base.model_id, trained_under),
        weights=weights,
        integers=chosen or _trained_integers(model, network, planned, stored),
    )
    reference = _reference(subject, blocks, plan)
    check = check_merge(unmerged, reference, exact=planned.exact, precision=weights_precision(model))
    lost = None if masks is None or mode != "dense" else cut_masks(masks, cuts)
    return MergedModel(subject, reference, check, adapter_params, None if lost is None else _zeros_left(model, lost))


def _zeros_left(model: nn.Module, masks: Masks) -> ZeroCheck:
    weights: Iterator[tuple[str, Any]] = ((path, model.get_submodule(path).weight) for path in masks)
    return check_zeros("merged", ((path, (weight == 0).numpy()) for path, weight in weights), masks)


def _matrices(integers: Iterator[tuple[str, Rounded]]) -> dict[str, Matrix]:
    """What the files store of layers that chose their number formats."""
    return {module_path(path): as_matrix(rounded) for path, rounded in integers}


def _trained_integers(
    model: nn.Module, network: SuperNetwork, planned: PlannedMerge, weight_format: str
) -> dict[str, Matrix]:
    """The integers of a model that was trained on them, where the export stores such."""
    if network.grids is None or planned.grid_bits is None or weight_format != integers_of(planned.grid_bits):
        return {}
    integers = {}
    for path, frozen in network.grids.matrices.items():
        module: Any = model.get_submodule(path)
        weight = getattr(module, "base", module).weight
        integers[module_path(path)] = as_matrix(LayerGrid(frozen.scales, frozen.bits).round(weight.detach().float()))
    return integers


def _load_unadapted(plan: ExportPlan) -> MergedModel:
    frozen = plan.frozen
    model, tokenizer = load_model(frozen.path, dtype=None), load_tokenizer(frozen.path)
    masks: Masks | None = load_masks(frozen.path / MASK_FILE) if frozen.manifest.kind == "sparse" else None
    if masks is not None:
        check_masked_zeros(model, masks)
    subject = ExportSubject(
        model=model,
        tokenizer=tokenizer,
        frozen=frozen.path,
        masks=masks,
        separate=False,
        sparsity=_sparsity_facts(masks, frozen),
        adapter=None,
        weights=frozen.path,
    )
    return MergedModel(subject, _reference(subject, _blocks(model, tokenizer), plan), None, 0)


def _blocks(model: Any, tokenizer: Any) -> Blocks:
    return fixed_blocks(tokenizer, vocabulary=model.config.vocab_size)


def _reference(subject: ExportSubject, blocks: Blocks, plan: ExportPlan) -> MergedReference:
    # A decoder is stored with its cache on, whatever training left in its configuration; a classifier has none.
    subject.model.config.use_cache = plan.head == "language_model"
    held_back = None
    if plan.runs_integers:
        held_back = read_held_back(subject.model, subject.tokenizer, plan.task, head=plan.head)
    return MergedReference(subject.model, plan.head, blocks, held_back)


def ask_task(subject: ExportSubject, plan: ExportPlan) -> TaskReference | None:
    """The merged model's answers to the run's validation rows, where a file with rounded weights will be asked them."""
    if not plan.runs_integers:
        return None
    return ask_reference(subject.model, subject.tokenizer, plan.task, head=plan.head)


def _sparsity_facts(masks: Masks | None, frozen: Artefact) -> dict[str, str]:
    if masks is None:
        return {}
    pruned = sum(int((~mask).sum()) for mask in masks.values())
    total = sum(mask.numel() for mask in masks.values())
    sparsity = frozen.manifest.details["sparsity"]
    return {
        "method": sparsity["method"],
        "pattern": sparsity["pattern"],
        "modules": str(len(masks)),
        "pruned": str(pruned),
        "share": f"{pruned / total:.6f}",
    }
