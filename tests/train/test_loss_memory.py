"""What a training says that its loss will hold, beside what real losses hold: a vocabulary can outweigh a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from accelerate.utils import convert_outputs_to_fp32
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from shearling.model.figures import figures_of
from shearling.model.weight_shards import StoredTensor
from shearling.recipe.training import TeacherSection
from tests.support.memory import PeakOfPrivateMemory
from tests.support.tiny_models import build_tiny
from tests.support.tiny_runs import tiny_recipe
from train.estimates import estimate_stage
from train.super_adapter.causal_loss import causal_loss
from train.super_adapter.sandwich import distillation_loss, label_loss
from train.super_adapter.taught_loss import Teacher, taught_loss

ROWS, LENGTH, VOCABULARY = 2, 1024, 10_000


def wide_headed() -> PreTrainedModel:
    """Hardly anything but its head, of which nothing trains, and a layer that does."""
    config = LlamaConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        vocab_size=VOCABULARY,
        tie_word_embeddings=True,
        pad_token_id=0,
    )
    model = build_tiny(LlamaForCausalLM, config).requires_grad_(False)
    model.get_submodule("model.layers").requires_grad_(True)
    return model


def plain(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> None:
    causal_loss(model, batch).backward()


def taught(model: PreTrainedModel, batch: dict[str, torch.Tensor], *, dtype: torch.dtype = torch.float32) -> None:
    teacher = Teacher(wide_headed().to(dtype), TeacherSection(prompt=1.0, answer=1.0))
    taught_loss(model, batch, teacher).backward()


def taught_in_bf16(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> None:
    taught(model, batch, dtype=torch.bfloat16)


def as_the_trainer_calls_it(model: PreTrainedModel) -> PreTrainedModel:
    """In bf16: computed in it, and the logits widened."""
    model.forward = convert_outputs_to_fp32(torch.autocast("cpu", torch.bfloat16)(model.forward))
    return model


def distilled(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> None:
    """As the Trainer does it: the largest sub-network, then one that it teaches."""
    labels = batch["labels"]
    logits = model(batch["input_ids"]).logits
    largest = logits.detach()
    label_loss(logits, labels, items=None).backward()
    del logits
    distillation_loss(model(batch["input_ids"]).logits, largest, labels, items=None).backward()


TEACHER = {"teacher": {"prompt": 1.0, "answer": 1.0}}
LARGEST_TEACHES = {"sandwich": True, "distillation": True}


@pytest.mark.parametrize(
    ("hold", "section", "precision"),
    [
        (plain, {}, "fp32"),
        (plain, {}, "bf16"),
        (taught, TEACHER, "fp32"),
        (taught_in_bf16, TEACHER, "bf16"),
        (distilled, LARGEST_TEACHES, "fp32"),
        (distilled, LARGEST_TEACHES, "bf16"),
    ],
)
def test_a_loss_holds_what_is_said(hold: Callable, section: dict, precision: str, tmp_path) -> None:
    ids = torch.randint(5, VOCABULARY, (ROWS, LENGTH))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}
    model = wide_headed() if precision == "fp32" else as_the_trainer_calls_it(wide_headed())
    with PeakOfPrivateMemory() as memory:
        hold(model, batch)
    recipe = tiny_recipe(tmp_path, train={"batch_size": ROWS, "precision": precision, **section})
    said = said_of_logits(recipe, LENGTH, train_on_prompt=True)
    assert 0.8 * said <= memory.growth_bytes <= 1.15 * said


def test_a_teacher_holds_no_more_logits_than_labels_alone(tmp_path) -> None:
    """Where every token is learnt, as in chats of whole conversations."""
    recipe = tiny_recipe(tmp_path, train={"batch_size": ROWS, "precision": "fp32"})
    plainly = said_of_logits(recipe, LENGTH, train_on_prompt=True)
    recipe = tiny_recipe(tmp_path, train={"batch_size": ROWS, "precision": "fp32", **TEACHER})
    assert said_of_logits(recipe, LENGTH, train_on_prompt=True) == plainly


def said_of_logits(recipe, length: int, **task) -> int:
    tensors = {"embed": StoredTensor("float32", (VOCABULARY, 8)), "layers.0.w": StoredTensor("float32", (8, 8))}
    figures = figures_of(tensors)
    assert figures.vocabulary == VOCABULARY
    section = recipe.task.model_copy(update={"max_length": length, **task})
    told = recipe.model_copy(update={"task": section})
    with_head, without = (
        estimate_stage(told, replace(figures, vocabulary=size), by_tensors=True)["super_adapter"]
        for size in (VOCABULARY, 0)
    )
    return with_head.memory_bytes - without.memory_bytes


def test_an_answer_of_a_few_choices_is_not_taken_for_a_whole_row(tmp_path) -> None:
    recipe = tiny_recipe(tmp_path, train={"batch_size": ROWS, "precision": "fp32"})
    whole = said_of_logits(recipe, LENGTH, train_on_prompt=True)
    assert 10 * said_of_logits(recipe, LENGTH, train_on_prompt=False) < whole
    assert said_of_logits(recipe, LENGTH, train_on_prompt=False, choices=None) == whole
