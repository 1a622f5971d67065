"""Training of the super-adapter, from a frozen model and a task to a `super_adapter` artefact."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shearling.artefact import Artefact, unfinished_artefact, write_artefact
from shearling.console import log, progress
from shearling.elastic.grid_file import GRID_FILE, load_grids, save_grids
from shearling.elastic.mask import MASK_FILE, Masks, check_masked_zeros, load_masks
from shearling.elastic.reordering import (
    REORDERING_FILE,
    Reordering,
    apply_reordering,
    load_reordering,
    save_reordering,
)
from shearling.elastic.search_space import SEARCH_SPACE_FILE, SearchSpace, rounded_count
from shearling.elastic.super_network import (
    ADAPTER_FILE,
    SuperNetwork,
    build_super_network,
    load_frozen,
)
from shearling.evaluation.precision import resolve_precision
from shearling.evaluation.task import CALIBRATION_CHARACTERS, Split, read_rows
from shearling.model.checkpoint import load_tokenizer
from shearling.model.figures import read_figures
from shearling.model.layers import find_layers
from shearling.model.token_ids import readable_ids
from shearling.recipe.adapter import AdapterSection
from shearling.recipe.recipe import Recipe, section_as_json
from shearling.recipe.task import TaskSection
from shearling.recipe.training import TrainSection
from shearling.run import data_role
from shearling.strict_json import write_document
from train.estimates import longest_sequence, trains_lean
from train.super_adapter import processes
from train.super_adapter.adapter_space import build_search_space
from train.super_adapter.attention import use_fast_attention
from train.super_adapter.choice_sampler import RankSampler
from train.super_adapter.grid import find_grids, grid_inputs
from train.super_adapter.importance import find_reordering, width_inputs
from train.super_adapter.interruption import deferred_interruption
from train.super_adapter.kept_file import made_once
from train.super_adapter.reporting import reporting
from train.super_adapter.resumption import CHECKPOINTS, INPUTS_FILE, continue_or_set_aside
from train.super_adapter.teacher import load_teacher, teacher_digest
from train.super_adapter.width_space import width_templates
from train.task.row_account import RowAccount

if TYPE_CHECKING:
    from datasets import Dataset

    from train.super_adapter.encoded_rows import RowEncoder
    from train.super_adapter.packing import PackedRows
    from train.super_adapter.taught_loss import Teacher

ROWS = "rows"
LOG_FILE = "training_log.jsonl"


@dataclass(frozen=True)
class LearntTask:
    """Rows that are learnt, and how."""

    artefact: Artefact
    section: TaskSection


@dataclass(frozen=True)
class Training:
    """What is trained, on what, and how.

    Attributes:
        tasks: what is learnt, the one that is measured and searched for first.
        inputs: what decides the outcome beside the parents; where it changes, what is unfinished is set aside.
        details: of the artefact, beside what follows from the others.
        build: the super-network with the adapter to begin with, and the order that its channels were brought into.
        sampler: of a space and a number of micro-batches, which sub-network every one of them trains.
        base: the dense model; asked for where the section has a teacher.
    """

    frozen: Artefact
    tasks: Sequence[LearntTask]
    section: TrainSection
    seed: int
    inputs: Mapping[str, Any]
    details: Mapping[str, Any]
    build: Callable[[], tuple[SuperNetwork, Reordering | None]]
    sampler: Callable[[SearchSpace, int], RankSampler]
    base: Artefact

    @property
    def parents(self) -> dict[str, Artefact]:
        """What the adapter is made from, by role."""
        main, *others = self.tasks
        roles = {data_role(task.section.name): task.artefact for task in others}
        return {self.frozen.manifest.kind: self.frozen, "task": main.artefact, **roles}


def train_super_adapter(
    recipe: Recipe,
    *,
    base: Artefact,
    frozen: Artefact,
    tasks: Sequence[Artefact],
    destination: Path,
    force: bool = False,
) -> None:
    """Train, or continue where an interrupted training of the same recipe on the same inputs stopped.

    On a CPU with the same seed and thread count a resumed run ends bit-identical to an uninterrupted one.

    Args:
        recipe: with [adapter] and [train].
        base: the dense model, adapted where the recipe asks for it.
        frozen: the `sparse` artefact, or `base` where the recipe does not prune.
        tasks: the artefacts of `recipe.tasks`, whose train rows are learnt.
        destination: where the `super_adapter` artefact will stand.
        force: replace one that stands there.

    Raises:
        TrainingDiverged: the loss became NaN or infinite; the last good checkpoint is kept.
        RecipeInvalid: the adapter groups do not fit the model.
    """
    if recipe.train is None:
        raise ValueError("the recipe has no [train]")
    inputs = recipe_inputs(recipe) | teacher_inputs(recipe.train, base)
    inputs |= grid_inputs(recipe.quantization) | width_inputs(recipe.width)
    training = Training(
        frozen=frozen,
        tasks=[LearntTask(task, section) for task, section in zip(tasks, recipe.tasks, strict=True)],
        section=recipe.train,
        seed=recipe.seed,
        inputs=inputs,
        details={
            "recipe": inputs,
            "model": section_as_json(recipe.model),
            "search": section_as_json(recipe.search),
        },
        build=lambda: _build_network(recipe, frozen, tasks[0], directory=unfinished_artefact(destination)),
        sampler=partial(draw_by_recipe, recipe.train, seed=recipe.seed),
        base=base,
    )
    carry_out(training, destination, force=force)


def draw_by_recipe(section: TrainSection, space: SearchSpace, micro_batches: int, *, seed: int) -> RankSampler:
    """The sampler that [train] asks for."""
    largest_until = int(section.largest_first * micro_batches)
    shrinks_until = micro_batches if section.shrinking == "progressive" else 0
    return RankSampler(space, seed=seed, kind=section.draw, largest_until=largest_until, shrinks_until=shrinks_until)


def carry_out(training: Training, destination: Path, *, force: bool) -> None:
    """Train, on as many processes as there are, and write a `super_adapter` artefact; an interrupted training is
    continued.

    Args:
        training: what to do.
        destination: where the artefact will stand.
        force: replace one that stands there.

    Raises:
        TrainingDiverged: the loss became NaN or infinite; the last good checkpoint is kept.
        ShearlingError: of what `training.build` refuses.
    """
    precision = resolve_precision(training.section.precision)
    if not processes.is_main():
        processes.wait_for_all()
        network, _ = _prepare(training)
        _fit(network, training, unfinished_artefact(destination), destination, precision=precision)
        return
    with write_artefact(
        destination,
        kind="super_adapter",
        parents=training.parents,
        seed=training.seed,
        force=force,
        resumable=True,
        scratch=(CHECKPOINTS, ROWS, INPUTS_FILE),
    ) as draft:
        parents = {role: parent.sha256 for role, parent in training.parents.items()}
        # The rows of a step are those of all processes.
        inputs = {**training.inputs, "processes": processes.count()}
        continue_or_set_aside(destination, inputs=inputs, parents=parents)
        processes.wait_for_all()
        network, reordering = _prepare(training)
        history, accounts = _fit(network, training, draft.directory, destination, precision=precision)
        _write(network, training.frozen, draft.directory, history)
        if reordering is not None:
            save_reordering(draft.directory / REORDERING_FILE, reordering)
            draft.details["reorder"] = reordering.method
        draft.details |= {**training.details, "precision": precision, "row_account": accounts.pop("task")}
        draft.details |= {"row_accounts": accounts} if accounts else {}


def recipe_inputs(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe decides the super-adapter's content."""
    sections = {
        "task": recipe.task,
        "sparsity": recipe.sparsity,
        "quantization": recipe.quantization,
        "adapter": recipe.adapter,
        "width": recipe.width,
        "train": recipe.train,
    }
    stored = {name: section_as_json(section) for name, section in sections.items()}
    stored["train"] = training_inputs(recipe.train)
    data = {"data": [section_as_json(section) for section in recipe.data]} if recipe.data else {}
    return {"name": recipe.name, "seed": recipe.seed, **stored, **data}


def training_inputs(section: TrainSection | None) -> dict[str, Any] | None:
    """What of [train] decides the outcome: how much memory it takes does not."""
    stored = section_as_json(section)
    return None if stored is None else {key: value for key, value in stored.items() if key != "memory"}


def teacher_inputs(section: TrainSection, base: Artefact) -> dict[str, Any]:
    """Whose predictions are learnt, where anybody's are."""
    return {} if section.teacher is None else {"teacher": teacher_digest(section.teacher, base)}


def _prepare(training: Training) -> tuple[SuperNetwork, Reordering | None]:
    network, reordering = training.build()
    config: Any = network.model.config
    config.use_cache = False
    longest = longest_sequence(training.section, (task.section for task in training.tasks))
    use_fast_attention(network.model, max_length=longest)
    return network, reordering


def _build_network(
    recipe: Recipe, frozen: Artefact, task: Artefact, *, directory: Path
) -> tuple[SuperNetwork, Reordering | None]:
    import torch

    adapter = recipe.adapter
    if adapter is None:
        raise ValueError("the recipe has no [adapter]")
    lean = _is_lean(recipe, adapter, frozen)
    model, tokenizer = load_frozen(frozen, lean=lean), load_tokenizer(frozen.path)
    masks: Masks | None = None
    if adapter.masked:
        masks = load_masks(frozen.path / MASK_FILE)
        check_masked_zeros(model, masks)
    widths = width_templates(recipe.width, model.config)
    quantization = recipe.quantization
    space = build_search_space(
        adapter, find_layers(model), model_type=model.config.model_type, widths=widths, quantization=quantization
    )
    log.print(
        f"search space: {len(space.groups)} groups, {rounded_count(space.size)} sub-networks, "
        f"{'masked' if adapter.masked else 'plain'} adapters"
    )
    rows = read_rows(task.path, "train", most_characters=CALIBRATION_CHARACTERS)
    reordering, grids = None, None
    if quantization is not None:
        round_anew = partial(find_grids, model, tokenizer, quantization, frozen=frozen, rows=rows, seed=recipe.seed)
        with processes.main_first():
            read_grids = partial(load_grids, base=frozen.path)
            grids = made_once(directory / GRID_FILE, round_anew, load=read_grids, save=save_grids)
    if recipe.width is not None and recipe.width.reorder != "none":
        find = partial(
            find_reordering,
            model,
            space,
            recipe.width,
            frozen=frozen,
            rows=rows,
            tokenizer=tokenizer,
            seed=recipe.seed,
        )
        with processes.main_first():
            read_order = partial(load_reordering, base=frozen.path)
            reordering = made_once(directory / REORDERING_FILE, find, load=read_order, save=save_reordering)
        masks = apply_reordering(model, masks, space, reordering)
    generator = torch.Generator().manual_seed(recipe.seed)
    network = build_super_network(model, tokenizer, space, masks, grids=grids, generator=generator, lean=lean)
    return network, reordering


def _is_lean(recipe: Recipe, adapter: AdapterSection, frozen: Artefact) -> bool:
    if recipe.train is None:
        raise ValueError("the recipe has no [train]")
    lean = trains_lean(
        read_figures(frozen.path),
        adapter,
        recipe.train,
        tasks=recipe.tasks,
        on_grid=recipe.quantization is not None,
    )
    lean = bool(processes.largest(int(lean)))
    if lean:
        log.print("in less memory, and slower: merged weights are made again where they are needed")
    return lean


def _fit(
    network: SuperNetwork, training: Training, directory: Path, destination: Path, *, precision: str
) -> tuple[list[dict[str, float]], dict[str, dict[str, int]]]:
    """Train, or go on; returns the log, and by role what became of the rows of each task."""
    from train.super_adapter.trainer import (
        StepReporter,
        build_trainer,
        has_run_out_of_patience,
        newest_checkpoint,
        training_arguments,
    )

    train, checkpoints = training.section, directory / CHECKPOINTS
    with processes.main_first():
        accounts = _encode(network, training, directory / ROWS) if processes.is_main() else {}
    rows = _load_rows(training, directory / ROWS, "train")
    validation = None if train.eval_steps is None else _load_rows(training, directory / ROWS, "validation")
    arguments = training_arguments(
        train,
        seed=training.seed,
        precision=precision,
        output=checkpoints,
        run_name=f"{destination.parent.name}-{destination.name}",
    )
    checkpoint = newest_checkpoint(checkpoints)
    steps = train.steps or _steps_of_epochs(train, len(rows), world_size=arguments.world_size)
    done = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    if checkpoint is not None:
        log.print(f"continuing from step {done}")
        if done >= steps or has_run_out_of_patience(checkpoint, train):
            # The Trainer would take one more step.
            return _finished(network, checkpoint, train), accounts
    with (
        deferred_interruption() as interruption,
        reporting(train, destination),
        progress(f"training the super-adapter ({precision})", total=steps - done) as advance,
    ):
        trainer = build_trainer(
            network,
            rows,
            arguments=arguments,
            sampler=training.sampler(
                network.space, _micro_batches(train, steps, len(rows), world_size=arguments.world_size)
            ),
            section=train,
            teacher=_teacher(training, precision=precision),
            callbacks=[StepReporter(advance, interruption)],
            validation=validation,
        )
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    interruption.raise_if_received()
    if train.patience is not None and processes.is_main():
        # It alone writes the artefact, and moves the checkpoints away.
        trainer.load_best()
    _say_best(trainer.state.log_history, train)
    return trainer.state.log_history, accounts


def _finished(network: SuperNetwork, checkpoint: Path, train: TrainSection) -> list[dict[str, float]]:
    """The adapter of a training of which all but the artefact is there, and its log."""
    from train.super_adapter.trainer import STATE_FILE, load_checkpoint

    state = json.loads((checkpoint / STATE_FILE).read_text())
    best = state.get("best_global_step") if train.patience is not None else None
    load_checkpoint(network, checkpoint.with_name(f"checkpoint-{best}") if best else checkpoint)
    _say_best(state["log_history"], train)
    return list(state["log_history"])


def _say_best(history: Sequence[Mapping[str, float]], train: TrainSection) -> None:
    losses = [(entry["eval_loss"], int(entry["step"])) for entry in history if "eval_loss" in entry]
    if train.patience is not None and losses:
        loss, step = min(losses)
        log.print(f"kept the adapter of step {step}, the least of {len(losses)} validation losses: {loss:.4f}")


def _teacher(training: Training, *, precision: str) -> Teacher | None:
    section = training.section.teacher
    return None if section is None else load_teacher(section, training.base, precision=precision)


def _encode(network: SuperNetwork, training: Training, directory: Path) -> dict[str, dict[str, int]]:
    """Tokenise every task into files; returns by role what became of its rows."""
    from train.super_adapter.encoded_rows import encode_rows

    accounts, readable = {}, readable_ids(network.model)
    for index, task in enumerate(training.tasks):
        section, account = task.section, RowAccount()
        role = "task" if index == 0 else data_role(section.name)
        encode = row_encoder(network.tokenizer, section, classifies=bool(network.head))
        total = encode_rows(
            task.artefact.path,
            "train",
            encode,
            _rows_file(directory, "train", index),
            account,
            readable=readable,
            where=role.replace("/", "."),
        )
        accounts[role] = account.counts
        sentence = account.sentence(total)
        if sentence is not None:
            name = "train.jsonl" if index == 0 else f"{role}/train.jsonl"
            log.print(f"{name} at {section.max_length} tokens: {sentence}")
    if training.section.eval_steps is not None:
        main = training.tasks[0]
        file = _rows_file(directory, "validation", 0)
        encode = row_encoder(network.tokenizer, main.section, classifies=bool(network.head))
        encode_rows(main.artefact.path, "validation", encode, file, RowAccount(), readable=readable, where="task")
    return accounts


def row_encoder(tokenizer: Any, section: TaskSection, *, classifies: bool) -> RowEncoder:
    """What makes tokens and labels of the rows of a task."""
    from train.super_adapter.classified_rows import ClassifiedRows
    from train.super_adapter.tokenised_rows import RowTokeniser

    if classifies:
        return ClassifiedRows(tokenizer, section.max_length)
    return RowTokeniser(
        tokenizer,
        max_length=section.max_length,
        train_on_prompt=section.train_on_prompt,
        train_on_end=section.train_on_end,
    )


def _load_rows(training: Training, directory: Path, split: Split) -> Dataset | PackedRows:
    """The encoded rows: to be learnt, those of all tasks; to validate, those of the first."""
    from train.super_adapter.encoded_rows import load_encoded
    from train.super_adapter.mixture import mix
    from train.super_adapter.packing import PackedRows

    tasks = training.tasks if split == "train" else training.tasks[:1]
    encoded = [load_encoded(_rows_file(directory, split, index)) for index in range(len(tasks))]
    rows = mix(encoded, [task.section.weight for task in tasks])
    tokens = training.section.pack_tokens
    if tokens is None:
        return rows
    packed = PackedRows(rows, tokens=tokens, seed=training.seed)
    if processes.is_main():
        log.print(f"{split}: {len(rows)} rows in {len(packed)} sequences of up to {tokens} tokens")
    return packed


def _rows_file(directory: Path, split: Split, index: int) -> Path:
    return directory / f"{split}-{index}.arrow"


def _steps_of_epochs(train: TrainSection, rows: int, *, world_size: int) -> int:
    """Optimiser steps, counted as the Trainer counts: the last batch and the last accumulation of an epoch may be
    short.
    """
    batches = math.ceil(rows / (train.batch_size * world_size))
    return math.ceil((train.epochs or 1.0) * math.ceil(batches / train.gradient_accumulation))


def _micro_batches(train: TrainSection, steps: int, rows: int, *, world_size: int) -> int:
    """Those of so many optimiser steps, on each process: the last accumulation of an epoch may be short."""
    batches = math.ceil(rows / (train.batch_size * world_size))
    epochs, left = divmod(steps, math.ceil(batches / train.gradient_accumulation))
    return epochs * batches + min(left * train.gradient_accumulation, batches)


def _write(network: SuperNetwork, frozen: Artefact, directory: Path, history: list[dict[str, float]]) -> None:
    from peft import LoraConfig
    from safetensors.torch import save_file

    adapter = network.space.adapter
    save_file({name: tensor.cpu() for name, tensor in network.adapter_state().items()}, directory / ADAPTER_FILE)
    # Whole paths: a bare name would also match modules outside the transformer layers.
    config = LoraConfig(
        r=adapter.r_max,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=sorted(network.layers),
        task_type="SEQ_CLS" if network.head else "CAUSAL_LM",
        modules_to_save=sorted({name.rpartition(".")[0] for name in network.head}) or None,
        base_model_name_or_path=frozen.manifest.details["model_id"],
        inference_mode=True,
    )
    config.save_pretrained(str(directory))
    if network.grids is not None:
        save_grids(directory / GRID_FILE, network.grids)
    write_document(directory / SEARCH_SPACE_FILE, network.space)
    (directory / LOG_FILE).write_text("".join(f"{json.dumps(entry)}\n" for entry in history))
