"""Neural low-rank adapter search, the training half: one set of adapter weights, another sub-network every micro-batch.

A Hugging Face Trainer in which each micro-batch activates the choice that the sampler draws, and a checkpoint is the
adapter, the optimiser and the sampler's counter (Shears, section 3.2).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from shearling.elastic.search_space import Choice
from shearling.elastic.super_network import ADAPTER_FILE, SuperNetwork, read_adapter_file
from shearling.errors import ArtefactCorrupt, TrainingDiverged
from shearling.model.token_ids import padding_id, readable_ids
from shearling.recipe.training import TrainSection
from shearling.strict_json import read_json
from train.super_adapter import processes
from train.super_adapter.causal_loss import causal_loss
from train.super_adapter.choice_sampler import RankSampler
from train.super_adapter.classified_rows import PadClassified
from train.super_adapter.interruption import Interruption
from train.super_adapter.length_grouping import LengthGroupedSampler, tell_epochs
from train.super_adapter.packing import PadPacks, check_packing
from train.super_adapter.sandwich import distillation_loss, label_loss, sandwich
from train.super_adapter.taught_loss import Teacher, taught_loss
from train.super_adapter.tokenised_rows import IGNORED_LABEL, PadToBatch, next_labels

SAMPLER_FILE = "sampler.json"
STATE_FILE = "trainer_state.json"
KEPT_CHECKPOINTS = 2
VALIDATION_LOSS = "eval_loss"
"""What the Trainer calls it."""


class NlsTrainer(transformers.Trainer):
    """Trainer of a super-adapter.

    Args:
        network: the super-network; only its adapters train.
        sampler: draws the sub-network of each micro-batch.
        section: of the recipe; says whether the largest and the smallest are trained beside each draw, and whether
            the largest teaches.
        teacher: a dense model whose predictions are learnt beside the labels.
        options: everything `transformers.Trainer` takes.
    """

    def __init__(
        self,
        network: SuperNetwork,
        sampler: RankSampler,
        section: TrainSection,
        teacher: Teacher | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model=network.model, **options)
        self.network = network
        self.sampler = sampler
        self.section = section
        self.teacher = teacher
        self._share = 1.0
        self._largest: torch.Tensor | None = None

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Draw a sub-network, then one forward and backward through it; three of them where they are sandwiched.

        Raises:
            TrainingDiverged: the loss is NaN or infinite; the last checkpoint is untouched.
        """
        self._largest, losses = None, []
        choices = self._next_choices()
        self._share = 1 / len(choices)
        for choice in choices:
            self.network.activate(choice, space=self.sampler.space)
            losses.append(super().training_step(model, inputs, num_items_in_batch))
        loss: torch.Tensor = torch.stack(losses).sum()
        if not torch.isfinite(loss):
            raise self._diverged(f"the loss is {loss.item()} at step {self.state.global_step + 1}")
        return loss

    def _next_choices(self) -> tuple[Choice, ...]:
        smallest = self.sampler.smallest_at(self.sampler.drawn)
        drawn = self.sampler.draw()
        return sandwich(self.sampler.space.maximal(), smallest, drawn) if self.section.sandwich else (drawn,)

    def get_train_dataloader(self) -> Any:
        """See `transformers.Trainer.get_train_dataloader`."""
        loader = super().get_train_dataloader()
        if self.section.group_by_length:
            tell_epochs(loader)
        return loader

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if not self.section.group_by_length:
            return super()._get_train_sampler(train_dataset)
        rows: Any = self.train_dataset
        return LengthGroupedSampler(
            rows["length"][:],
            rows["gold"][:],
            batch_size=self.args.train_batch_size * self.args.gradient_accumulation_steps,
            seed=self.args.seed,
        )

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """Mean loss of the batches of validation rows; see `transformers.Trainer.evaluate`."""
        self.network.activate(self.sampler.validated)
        with self.network.materialised():
            return dict(super().evaluate(*arguments, **options))

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor, None, None]:
        """The loss of the labels alone, without logits: whoever teaches, this is what the task asks."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            if self.network.head:
                loss = label_loss(_logits(model, inputs), inputs["labels"], items=None)
            else:
                loss = causal_loss(self.network.model, inputs, called=model)
        return loss.detach(), None, None

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The loss at the labelled positions, or the distance from the teacher, scaled as the Trainer scales its own;
        this sub-network's share of the micro-batch's loss.
        """
        items, teaching = num_items_in_batch, 1.0
        if items is not None:
            # What is taught is a mean over the micro-batch, which the Trainer only divides where it counts no items.
            teaching = 1 / self.current_gradient_accumulation_steps
            if self.args.average_tokens_across_devices:
                # The gradients of the processes are averaged, and every one of them divides by the items of all.
                items = items / self.accelerator.num_processes
        if self.network.head or self.section.distillation:
            loss = self._loss_of_logits(model, inputs, items)
        elif self.teacher is not None:
            loss = taught_loss(self.network.model, inputs, self.teacher, called=model, items=items, teaching=teaching)
        else:
            loss = causal_loss(self.network.model, inputs, called=model, items=items)
        return loss * self._share

    def _loss_of_logits(
        self, model: torch.nn.Module, inputs: dict[str, Any], items: torch.Tensor | None
    ) -> torch.Tensor:
        labels = inputs["labels"]
        if not self.network.head:
            labels = torch.nn.functional.pad(next_labels(inputs), (1, 0), value=IGNORED_LABEL)
        logits = _logits(model, inputs)
        if self._largest is not None:
            return distillation_loss(logits, self._largest, labels, items=items)
        if self.section.distillation:
            self._largest = logits.detach()
        return label_loss(logits, labels, items=items)

    def _diverged(self, what: str) -> TrainingDiverged:
        return TrainingDiverged(
            f"{what}, learning rate {self._get_learning_rate():.2e}",
            where=self.args.output_dir,
            remedy="Lower train.learning_rate or add train.warmup_steps; the last good checkpoint is kept",
        )

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        state = self.network.adapter_state()
        # A finite loss can have an infinite gradient; then the update, not the loss, is where it shows.
        broken = next((name for name, tensor in state.items() if not torch.isfinite(tensor).all()), None)
        if broken is not None:
            raise self._diverged(f"{broken} is not finite after step {self.state.global_step}")
        directory = Path(output_dir or self.args.output_dir)
        directory.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.cpu() for name, tensor in state.items()}, directory / ADAPTER_FILE)
        (directory / SAMPLER_FILE).write_text(json.dumps({"seed": self.sampler.seed, "drawn": self.sampler.drawn}))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        load_checkpoint(self.network, Path(resume_from_checkpoint))
        sampler = read_json(Path(resume_from_checkpoint) / SAMPLER_FILE)
        if sampler.get("seed") != self.sampler.seed:
            raise ArtefactCorrupt(
                f"the sampler's seed is {sampler.get('seed')}, expected {self.sampler.seed}",
                where=resume_from_checkpoint,
            )
        self.sampler.drawn = int(sampler["drawn"])

    def load_best(self) -> None:
        """Put the adapter of the least validation loss into the network, where one was measured."""
        step = self.state.best_global_step
        if step:
            # By its number: the path that the state has is of the place where the run stood then.
            load_checkpoint(self.network, Path(self.args.output_dir) / f"checkpoint-{step}")


def load_checkpoint(network: SuperNetwork, checkpoint: Path) -> None:
    """Put the adapter of a checkpoint into the network.

    Raises:
        ArtefactError: it does not fit, or is damaged.
    """
    file = checkpoint / ADAPTER_FILE
    network.load_adapter_state(read_adapter_file(file), where=file)


def _logits(model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    logits: torch.Tensor = model(**{name: tensor for name, tensor in inputs.items() if name != "labels"}).logits
    return logits


class StepReporter(TrainerCallback):
    """Moves the progress bar, and stops with a checkpoint when a signal came.

    Args:
        advance: of `shearling.console.progress`.
        interruption: noted signals.
    """

    def __init__(self, advance: Callable[..., None], interruption: Interruption) -> None:
        self.advance = advance
        self.interruption = interruption
        self.notes: dict[str, str] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Write checkpoints as often as this training is told to, and not as the one that it continues was."""
        state.save_steps = args.save_steps

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Remember the newest losses for the bar."""
        for name, words in (("loss", "loss"), (VALIDATION_LOSS, "validation")):
            if logs and name in logs:
                self.notes[words] = f"{words} {logs[name]:.3f}"

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Count the step."""
        self.advance(note=", ".join(self.notes.values()))
        # All processes stop at the same step, whichever got the signal.
        self.interruption.signal = processes.largest(self.interruption.signal or 0) or None
        if self.interruption.signal is not None:
            control.should_save = True
            control.should_training_stop = True
        return control


class ValidatedCheckpoints(TrainerCallback):
    """Writes a checkpoint at each validation loss, so that the adapter of the least is among them
    (`load_best_model_at_end` has none in between), and has one of the last step.
    """

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Ask for the loss of what is learnt behind the last multiple of `eval_steps`."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = True
        return control

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Ask for one."""
        control.should_save = True
        return control


class OldCheckpointRemover(TrainerCallback):
    """Keeps the newest checkpoints by number, and that of the best validation loss (`save_total_limit` sorts by time,
    and warns where steps are fast).
    """

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Remove what the checkpoint that was just written makes superfluous."""
        if state.is_world_process_zero:
            best = f"checkpoint-{state.best_global_step}"
            for path in _numbered_checkpoints(Path(args.output_dir))[KEPT_CHECKPOINTS:]:
                if path.name != best:
                    shutil.rmtree(path)


def training_arguments(
    train: TrainSection, *, seed: int, precision: str, output: Path, run_name: str | None = None
) -> TrainingArguments:
    """The recipe's [train] section in the Trainer's terms; the run has a name where others are told of it."""
    schedule = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}[train.schedule]
    arguments = TrainingArguments(
        output_dir=str(output),
        max_steps=train.steps or -1,
        num_train_epochs=train.epochs or 1.0,
        per_device_train_batch_size=train.batch_size,
        gradient_accumulation_steps=train.gradient_accumulation,
        learning_rate=train.learning_rate,
        weight_decay=train.weight_decay,
        warmup_steps=train.warmup_steps,
        lr_scheduler_type=schedule,
        gradient_checkpointing=train.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if train.gradient_checkpointing else None,
        bf16=precision == "bf16",
        # The masks, a byte a weight, would be sent before every step; each process has read them itself.
        ddp_broadcast_buffers=False,
        use_cpu=not torch.cuda.is_available(),
        optim="adamw_torch",
        seed=seed,
        data_seed=seed,
        logging_steps=5,
        save_strategy="steps",
        save_steps=train.save_steps,
        eval_strategy="no" if train.eval_steps is None else "steps",
        eval_steps=train.eval_steps,
        per_device_eval_batch_size=train.batch_size,
        prediction_loss_only=True,
        metric_for_best_model=VALIDATION_LOSS if train.patience is not None else None,
        greater_is_better=False if train.patience is not None else None,
        restore_callback_states_from_checkpoint=train.patience is not None,
        report_to=list(train.report_to) or "none",
        run_name=run_name,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        label_names=["labels"],
    )
    # More devices come with a launcher; without one the Trainer would replicate the model by threads.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def build_trainer(
    network: SuperNetwork,
    rows: Any,
    *,
    arguments: TrainingArguments,
    sampler: RankSampler,
    section: TrainSection,
    callbacks: list[TrainerCallback],
    teacher: Teacher | None = None,
    validation: Any = None,
) -> NlsTrainer:
    """A trainer over tokenised rows, quiet but for our own progress.

    Args:
        network: the super-network.
        rows: from `load_encoded`.
        arguments: see `training_arguments`.
        sampler: of sub-networks.
        section: [train].
        callbacks: beside those that every training has.
        teacher: whose predictions are learnt.
        validation: rows whose loss is measured; None where the section asks for none.

    Raises:
        ModelUnsupported: rows are to be packed, and the model cannot keep them apart.
    """
    pad = padding_id(network.tokenizer, readable_ids(network.model))
    collator: Any = PadClassified(pad) if network.head else PadToBatch(pad)
    if section.pack_tokens is not None:
        check_packing(network.model, pad)
        collator = PadPacks(pad)
    if section.patience is not None:
        early_stopping = transformers.EarlyStoppingCallback(early_stopping_patience=section.patience)
        callbacks = [*callbacks, early_stopping, ValidatedCheckpoints()]
    options = {
        "args": arguments,
        "train_dataset": rows,
        "eval_dataset": validation,
        "data_collator": collator,
        "callbacks": callbacks,
    }
    trainer = NlsTrainer(network, sampler, section, teacher, **options)
    if teacher is not None:
        # The Trainer moves the student alone.
        teacher.model.to(arguments.device)
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.add_callback(OldCheckpointRemover())
    return trainer


def has_run_out_of_patience(checkpoint: Path, section: TrainSection) -> bool:
    """Whether a training that was interrupted had stopped already because the validation loss fell no more."""
    if section.patience is None:
        return False
    state = read_json(checkpoint / STATE_FILE).get("stateful_callbacks", {}).get("EarlyStoppingCallback", {})
    return int(state.get("attributes", {}).get("early_stopping_patience_counter", 0)) >= section.patience


def newest_checkpoint(directory: Path) -> Path | None:
    """The newest checkpoint that was written to its end; half-written ones are passed over, and those of whose files a
    power failure left none but the names.
    """
    for path in _numbered_checkpoints(directory):
        try:
            json.loads((path / STATE_FILE).read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            continue
        if all(file.stat().st_size for file in path.iterdir()):
            return path
    return None


def _numbered_checkpoints(directory: Path) -> list[Path]:
    """Newest first."""
    numbered = [
        (int(number), path)
        for path in directory.glob("checkpoint-*")
        if (number := path.name.removeprefix("checkpoint-")).isdecimal()
    ]
    return [path for _, path in sorted(numbered, reverse=True)]
