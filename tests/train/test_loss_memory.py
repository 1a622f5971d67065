"""What a training says that its loss will hold, beside what real losses hold: a vocabulary can outweigh a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
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

ROWS, LENGTH, VOCABULARY = 2, 128, 80_000


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


def taught(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> None:
    loss = taught_loss(model, batch, Teacher(wide_headed(), TeacherSection(prompt=1.0, answer=1.0)))
    (loss.labels + loss.teaching).backward()


def distilled(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> None:
    """As the Trainer does it: the largest sub-network, then one that it teaches."""
    labels = batch["labels"]
    logits = model(batch["input_ids"]).logits
    largest = logits.detach()
    label_loss(logits, labels, items=None).backward()
    del logits
    distillation_loss(model(batch["input_ids"]).logits, largest, labels, items=None).backward()


@pytest.mark.parametrize(
    ("hold", "section"),
    [
        (plain, {}),
        (taught, {"teacher": {"prompt": 1.0, "answer": 1.0}}),
        (distilled, {"sandwich": True, "distillation": True}),
    ],
)
def test_a_loss_holds_what_is_said(hold: Callable, section: dict, tmp_path) -> None:
    ids = torch.randint(5, VOCABULARY, (ROWS, LENGTH))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}
    model = wide_headed()
    with PeakOfPrivateMemory() as memory:
        hold(model, batch)
    recipe = tiny_recipe(tmp_path, train={"batch_size": ROWS, "precision": "fp32", **section})
    said = said_of_logits(recipe, LENGTH, train_on_prompt=True)
    assert 0.8 * said <= memory.growth_bytes <= 1.1 * said


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
