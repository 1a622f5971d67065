"""What the parts of the train stage will hold in memory and write, from the sizes of the model and from the recipe.

Each term is something that is there at the peak; what it is multiplied by are bytes an entry. The peaks were measured
on random models by `python -m benchmarks.scale`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace

from shearling.evaluation.precision import resolve_precision
from shearling.model.figures import FLOAT32_BYTES, ModelFigures, read_figures
from shearling.recipe.adapter import AdapterSection
from shearling.recipe.recipe import Recipe
from shearling.recipe.sparsity import SparsitySection
from shearling.recipe.task import TaskSection
from shearling.recipe.training import MOST_TAUGHT_POSITIONS, TrainSection
from shearling.registry.pruning_methods import PRUNING_METHODS
from shearling.resources import Estimate, available_memory_bytes, cuda_libraries_bytes, free_device_bytes
from train.base.adaptation import adapting_recipe

LIBRARIES_BYTES = 670 * 2**20
"""Python, torch and transformers, loaded, in a new environment, of which the system keeps more in memory."""
TRAINING_LIBRARIES_BYTES = 770 * 2**20
"""With the Trainer and peft."""
CHOOSING_BYTES = 22
"""An entry of the largest matrix while its mask is chosen: a copy, scores, comparisons, counts of ties."""
REPAIRING_BYTES = 80
"""An entry of the largest matrix while its weights are chosen anew: by ALPS 76, by conjugate gradients 61."""
GRAM_CHOOSING_BYTES = 22
"""An entry of the largest Gram matrix while it is inverted or decomposed, beside the matrices that wait."""
GRAM_DAMPING_BYTES = 8
"""The same where it is multiplied by alone."""
MERGING_BYTES = 17
"""An entry of the largest matrix in the backward: the merged weight, the gradient of it, the mask as numbers."""
ADAM_BYTES = 16
"""A parameter that trains: itself, its gradient and two moments."""
CHECKPOINT_BYTES = 12
"""A parameter that trains, in a checkpoint: itself and its moments."""
CHECKPOINTS = 3
"""At once, one of them unfinished; the best one beside them where it is asked for."""
ACTIVATIONS = 14
"""Tensors as wide as the hidden states that the backward of one layer needs, and four as wide as the feed-forward."""
LOGITS_BYTES = 2 * FLOAT32_BYTES
"""A logit of what is learnt, itself and its gradient: accelerate widens the logits of bf16. Where a teacher computes in
float32 as well, its own make room for the gradient."""
DISTILLED_BYTES = 3 * FLOAT32_BYTES
"""A logit of any position: of the largest sub-network, of another one, and a gradient."""
DISTILLING_BYTES = 20
"""A logit of what is learnt from the largest sub-network: both as probabilities, what they differ by, gradients."""


def estimate_import(figures: ModelFigures, *, by_tensors: bool, rewritten: bool = False) -> Estimate:
    """Of the base artefact.

    Args:
        figures: of what the source becomes.
        by_tensors: it is copied; else it is loaded as a whole and in float32.
        rewritten: the source is first written as another architecture, on the same disk.
    """
    scratch_bytes = figures.stored_bytes if rewritten else 0
    if by_tensors:
        return Estimate(_libraries() + figures.table_bytes, figures.stored_bytes + scratch_bytes)
    whole_bytes = FLOAT32_BYTES * figures.parameters
    return Estimate(_libraries() + 2 * whole_bytes, whole_bytes + scratch_bytes)


def estimate_pruning(figures: ModelFigures, section: SparsitySection) -> Estimate:
    """Of the sparse artefact: with one layer in memory, or the whole model where the section needs it."""
    masks_bytes = figures.linear_parameters // 8
    disk = Estimate(0, figures.stored_bytes + masks_bytes)
    choosing = choosing_memory_bytes(figures, section) + masks_bytes
    layer = FLOAT32_BYTES * figures.layer_parameters
    text = section.calibration.samples * section.calibration.seq_len * figures.hidden * FLOAT32_BYTES
    tuned = section.reconstruction is not None and section.reconstruction.layer_epochs > 0
    # The states of the pruned model, and those of the dense one, which are also the targets.
    states = text * ((3 if tuned else 1) if section.measured else 0)
    # Adam, and the gradient, of a layer that is tuned.
    tuning = 3 * layer if tuned else 0
    if section.by_layers:
        around = FLOAT32_BYTES * figures.outside_parameters if section.measured else 0
        reading = figures.table_bytes if section.measured else 0
        peak = max(around + reading, around + layer + states, layer + choosing + states, layer + tuning + states)
    else:
        healing = section.healing
        copies = 4 if healing is not None else 2
        # Its masks, a byte a weight.
        masked = figures.linear_parameters if healing is not None else 0
        peak = (
            copies * FLOAT32_BYTES * figures.parameters
            + masked
            + max(states + choosing, _healing_bytes(section, figures))
        )
    return Estimate(_libraries() + peak).then(disk)


def _healing_bytes(section: SparsitySection, figures: ModelFigures) -> int:
    """What one micro-batch of healing needs for its backward, and what its loss holds as large as logits."""
    if section.healing is None:
        return 0
    positions = section.healing.batch_size * section.healing.seq_len
    wide = ACTIVATIONS * figures.hidden + 4 * figures.widest
    return FLOAT32_BYTES * positions * (wide * figures.layers + 3 * figures.vocabulary)


def choosing_memory_bytes(figures: ModelFigures, section: SparsitySection) -> int:
    """Of what is gathered of a layer, and what its largest matrix takes beside itself while it is pruned."""
    needs_gram = PRUNING_METHODS.get(section.method).needs_gram
    if not needs_gram and section.reconstruction is None:
        return CHOOSING_BYTES * figures.matrix
    largest = (GRAM_CHOOSING_BYTES if needs_gram else GRAM_DAMPING_BYTES) * figures.largest_gram
    return REPAIRING_BYTES * figures.matrix + FLOAT32_BYTES * figures.gram + largest


def estimate_training(
    figures: ModelFigures, adapter: AdapterSection, train: TrainSection, *, tasks: Sequence[TaskSection], lean: bool
) -> Estimate:
    """Of one process that trains a super-adapter. Where a CUDA device computes, the machine holds what is loaded before
    it goes there.

    Args:
        figures: of the frozen model.
        adapter: [adapter] of the recipe.
        train: [train] of the recipe.
        tasks: [task] and [[data]] of the recipe.
        lean: see `shearling.elastic.elastic_lora.ElasticLoraLinear`.
    """
    computed_bytes = 2 if resolve_precision(train.precision) == "bf16" else FLOAT32_BYTES
    weights = figures.stored_bytes if lean else FLOAT32_BYTES * figures.parameters
    # The bits that were read stay beside what the layers hold.
    masks = (figures.linear_parameters // 8 + figures.linear_parameters // (8 if lean else 1)) * adapter.masked
    checkpointed = 1 if train.gradient_checkpointing else figures.layers
    merged = 0 if lean or not adapter.masked else checkpointed * figures.layer_linear_parameters * computed_bytes
    ranks = sum(len(group.modules) for group in adapter.groups) * adapter.r
    trained = figures.layers * ranks * (figures.hidden + figures.widest)
    rows = train.batch_size * longest_sequence(train, tasks)
    wide = ACTIVATIONS * figures.hidden + 4 * figures.widest
    states = rows * FLOAT32_BYTES * (wide * checkpointed + figures.hidden * figures.layers)
    teacher = computed_bytes * _teacher_parameters(train, figures)
    # A head that is stored in another type is widened for its product, where no autocast takes it as it is.
    widened = lean and computed_bytes == FLOAT32_BYTES and figures.table_bytes < FLOAT32_BYTES * figures.table
    head = FLOAT32_BYTES * figures.table if widened else 0
    # What the loss needs is gone when the first layer is merged again in the backward.
    loss = head + _logits_bytes(figures, train, tasks, computed_bytes)
    # Between steps, for validation.
    validating = 0 if lean or not adapter.masked or train.eval_steps is None else figures.linear_parameters
    working = max(merged + states + max(MERGING_BYTES * figures.matrix, loss), FLOAT32_BYTES * validating + loss)
    peak = weights + masks + ADAM_BYTES * trained + teacher + working
    libraries = TRAINING_LIBRARIES_BYTES + cuda_libraries_bytes()
    checkpoints = CHECKPOINTS + (train.patience is not None)
    disk = (CHECKPOINT_BYTES * checkpoints + FLOAT32_BYTES) * trained
    if free_device_bytes() is None:
        return Estimate(libraries + peak, disk)
    loaded = weights + masks + FLOAT32_BYTES * trained + teacher
    return Estimate(libraries + loaded, disk, peak)


def _teacher_parameters(train: TrainSection, figures: ModelFigures) -> int:
    if train.teacher is None:
        return 0
    return figures.parameters if train.teacher.path is None else read_figures(train.teacher.path).parameters


def trains_lean(
    figures: ModelFigures,
    adapter: AdapterSection,
    train: TrainSection,
    *,
    tasks: Sequence[TaskSection],
    on_grid: bool,
) -> bool:
    """Whether a training takes less memory and more time: where the recipe says so, or leaves it open and what is
    faster does not fit into this machine, once for each process, or into its device. Each process sees what it sees.

    Args:
        figures: of the frozen model.
        adapter: [adapter] of the recipe.
        train: [train] of the recipe.
        tasks: [task] and [[data]] of the recipe.
        on_grid: the weights are put onto a grid, in float32.
    """
    if on_grid or train.memory != "auto":
        return train.memory == "lean" and not on_grid
    fast = estimate_training(figures, adapter, train, tasks=tasks, lean=False)
    return local_processes() * fast.memory_bytes > available_memory_bytes() or fast.device_bytes > (
        free_device_bytes() or 0
    )


def local_processes() -> int:
    """Processes of a training on this machine, as the launcher tells it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def longest_sequence(train: TrainSection, tasks: Iterable[TaskSection]) -> int:
    """Tokens of one sequence of a training, at most: of a row, or of a pack of rows; a longer row is a pack."""
    return max(train.pack_tokens or 0, *(task.max_length for task in tasks))


def estimate_stage(
    recipe: Recipe, figures: ModelFigures, *, by_tensors: bool, rewritten: bool = False
) -> dict[str, Estimate]:
    """Of all that a recipe makes, by its name in the run.

    Args:
        recipe: validated.
        figures: of the source.
        by_tensors: see `estimate_import`.
        rewritten: likewise.
    """
    if recipe.model.head == "classifier":
        figures = replace(figures, vocabulary=0)
    parts = {"base": estimate_import(figures, by_tensors=by_tensors, rewritten=rewritten)}
    adapting = adapting_recipe(recipe)
    if adapting is not None:
        parts["lora"] = _trained(adapting, figures)
        merging_bytes = _libraries() + figures.stored_bytes + MERGING_BYTES * figures.matrix
        parts["adapted"] = Estimate(max(parts["lora"].memory_bytes, merging_bytes), figures.stored_bytes)
    if recipe.sparsity is not None:
        parts["sparse"] = estimate_pruning(figures, recipe.sparsity)
        if recipe.variants is not None:
            alone = recipe.sparsity.model_copy(update={"healing": None, "allocation": "uniform"})
            once = estimate_pruning(figures, alone)
            parts["variants"] = Estimate(once.memory_bytes, len(recipe.variants.ratios) * once.disk_bytes)
    if recipe.adapter is not None:
        parts["super_adapter"] = _trained(recipe, figures)
    return parts


def what_would_fit(recipe: Recipe, part: str, estimate: Estimate) -> str:
    """What to change in a recipe where one of its parts takes too much memory: of this machine, or of its device."""
    train, sparsity = recipe.train, recipe.sparsity
    if part == "sparse" and sparsity is not None and not sparsity.by_layers:
        found = "[sparsity.healing]" if sparsity.healing is not None else 'allocation = "searched"'
        return f"Leave {found} out: it holds the whole model in float32, pruning one layer"
    if part in ("sparse", "variants"):
        return "Lower the samples of [sparsity.calibration], or use a larger machine"
    if part in ("lora", "super_adapter", "adapted") and train is not None:
        if train.memory == "fast" and recipe.quantization is None:
            return 'Set memory = "lean" in [train]'
        if estimate.memory_bytes > available_memory_bytes():
            if local_processes() > 1:
                return "Start fewer processes on this machine"
            if estimate.device_bytes:
                return "Use a smaller model or a larger machine"
        if not train.gradient_checkpointing:
            return "Set gradient_checkpointing = true in [train], or a smaller batch_size"
        return "Set a smaller batch_size or max_length, or use a larger machine"
    return "Use a smaller model or a larger machine"


def _trained(recipe: Recipe, figures: ModelFigures) -> Estimate:
    adapter, train = recipe.adapter, recipe.train
    if adapter is None or train is None:
        raise ValueError("the recipe has no [adapter] and [train]")
    on_grid = recipe.quantization is not None
    lean = trains_lean(figures, adapter, train, tasks=recipe.tasks, on_grid=on_grid)
    found = estimate_training(figures, adapter, train, tasks=recipe.tasks, lean=lean)
    # A grid is found on a copy of the model.
    copied = FLOAT32_BYTES * figures.parameters if on_grid else 0
    return replace(found, memory_bytes=local_processes() * (found.memory_bytes + copied))


def _logits_bytes(figures: ModelFigures, train: TrainSection, tasks: Sequence[TaskSection], computed_bytes: int) -> int:
    """What the loss of one micro-batch holds that is as large as logits."""
    everywhere = train.batch_size * longest_sequence(train, tasks)
    learnt = train.batch_size * max(train.pack_tokens or 0, *map(_learnt_positions, tasks))
    if train.distillation:
        of_a_logit = DISTILLED_BYTES * everywhere + DISTILLING_BYTES * learnt
    elif train.teacher is not None:
        teachers_bytes = computed_bytes if computed_bytes != FLOAT32_BYTES else 0
        of_a_logit = (LOGITS_BYTES + teachers_bytes) * min(everywhere, learnt + MOST_TAUGHT_POSITIONS)
    else:
        of_a_logit = LOGITS_BYTES * learnt
    return figures.vocabulary * of_a_logit


def _learnt_positions(task: TaskSection) -> int:
    """Of one row, at most."""
    if task.choices is None or task.train_on_prompt:
        return task.max_length
    # A token has a character at least; one more ends the text.
    return min(task.max_length, 1 + max(map(len, task.choices)))


def _libraries() -> int:
    return LIBRARIES_BYTES + cuda_libraries_bytes()
