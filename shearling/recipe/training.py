"""[train]: how the super-network is trained, and who teaches it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import pydantic

from shearling.recipe.section import Section

MOST_TAUGHT_POSITIONS = 128
"""Unlabelled positions of a micro-batch that a teacher is compared at, drawn evenly: enough to keep the language, and
little beside the model itself."""


class TeacherSection(Section):
    """A dense model whose predictions are learnt beside the labels: weights of KL(teacher || student)."""

    path: Path | None = pydantic.Field(
        None, description="a model directory, relative to the recipe; absent: the run's own, adapted or not"
    )
    prompt: float = pydantic.Field(1.0, ge=0, description="weight at the tokens of the prompt: keeps the language")
    answer: float = pydantic.Field(0.0, ge=0, description="weight at the labelled tokens, for a teacher of the task")
    hidden: float = pydantic.Field(
        0.0, ge=0, description="weight of the relative squared distance of the last hidden states"
    )

    @pydantic.model_validator(mode="after")
    def _teaches(self) -> TeacherSection:
        if not (self.prompt or self.answer or self.hidden):
            raise ValueError("give 'prompt', 'answer' or 'hidden' a weight above 0: this teacher teaches nothing")
        return self


class TrainSection(Section):
    """Optimisation of the super-adapter."""

    papers: ClassVar[Mapping[str, Any]] = {"draw": "independent", "largest_first": 0.0}

    steps: int | None = pydantic.Field(None, ge=1, description="optimiser steps; or give epochs")
    epochs: float | None = pydantic.Field(None, gt=0)
    batch_size: int = pydantic.Field(16, ge=1, description="rows of a micro-batch, per device")
    gradient_accumulation: int = pydantic.Field(1, ge=1)
    learning_rate: float = pydantic.Field(3e-4, gt=0)
    weight_decay: float = pydantic.Field(0.0, ge=0)
    warmup_steps: int = pydantic.Field(0, ge=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    precision: Literal["auto", "bf16", "fp32"] = pydantic.Field(
        "auto", description="auto: bf16 autocast where the hardware has it"
    )
    gradient_checkpointing: bool = False
    memory: Literal["auto", "fast", "lean"] = pydantic.Field(
        "auto",
        description="lean: weights as they are stored, masks as bits, merged weights made again in the backward; the "
        "same numbers in less memory and more time; auto: where fast does not fit",
    )
    group_by_length: bool = pydantic.Field(
        False, description="rows of similar length share a batch: less padding, less random"
    )
    pack_tokens: int | None = pydantic.Field(
        None,
        ge=16,
        description="rows share sequences of up to so many tokens, and see none of each other; batch_size counts "
        "sequences then",
    )
    save_steps: int = pydantic.Field(50, ge=1, description="steps between checkpoints")
    eval_steps: int | None = pydantic.Field(
        None, ge=1, description="steps between losses of the largest sub-network on the validation rows"
    )
    patience: int | None = pydantic.Field(
        None,
        ge=1,
        description="stop after so many validation losses in a row that are no less than the least, and keep the "
        "adapter of that one; needs eval_steps",
    )
    report_to: tuple[Literal["tensorboard", "wandb"], ...] = pydantic.Field(
        (), description="who gets the losses beside the log; the latter sends them to a service"
    )
    draw: Literal["shared", "independent", "nested"] = pydantic.Field(
        "shared",
        description="which sub-network a micro-batch trains: all groups draw together; every group for itself (as in "
        "the papers, and with [width] unless it is said); nested: all together, any rank from 1 to r",
    )
    largest_first: float = pydantic.Field(
        0.5,
        ge=0,
        lt=1,
        description="share of the steps, at the beginning, that train the largest sub-network alone; with [width] 0 "
        "unless it is said",
    )
    shrinking: Literal["at_once", "progressive"] = pydantic.Field(
        "at_once",
        description="how smaller sub-networks join behind largest_first: all at once, or one more value of every list "
        "after the other, in equal parts of the steps that are left",
    )
    sandwich: bool = pydantic.Field(
        False,
        description="every micro-batch trains the largest, the smallest and one drawn sub-network; one that trains "
        "the largest alone does so once",
    )
    distillation: bool = pydantic.Field(
        False, description="the largest sub-network teaches the other two; needs sandwich"
    )
    teacher: TeacherSection | None = None

    @pydantic.model_validator(mode="after")
    def _teacher(self) -> TrainSection:
        if self.distillation and not self.sandwich:
            raise ValueError("distillation needs sandwich = true: the largest sub-network is the teacher")
        if self.distillation and self.teacher is not None:
            raise ValueError("give either 'distillation' or [train.teacher]: one teacher at a time")
        return self

    @pydantic.model_validator(mode="after")
    def _batches(self) -> TrainSection:
        if self.pack_tokens is not None and self.group_by_length:
            raise ValueError("give either 'pack_tokens' or 'group_by_length': packed rows leave no padding")
        if self.patience is not None and self.eval_steps is None:
            raise ValueError("patience needs eval_steps: it counts validation losses")
        return self

    @pydantic.model_validator(mode="after")
    def _length(self) -> TrainSection:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of 'steps' and 'epochs'")
        return self
