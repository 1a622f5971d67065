"""The sandwich rule and in-place distillation: what each micro-batch trains, and towards what."""

import json

import torch
from torch.nn import functional as F

from shearling.artefact import open_artefact
from shearling.elastic.super_network import load_super_network
from shearling.evaluation.task import read_rows
from shearling.model.checkpoint import load_model
from shearling.run import Run
from tests.support.tiny_runs import tiny_network, tiny_recipe
from train.stage import run_recipe
from train.super_adapter.causal_loss import causal_loss
from train.super_adapter.sandwich import distillation_loss, label_loss, sandwich
from train.super_adapter.tokenised_rows import IGNORED_LABEL, PadToBatch, RowTokeniser


def test_a_sandwich_is_largest_smallest_and_drawn():
    space = tiny_network(masked=False).space
    largest, smallest, middle = space.maximal(), space.minimal(), space.heuristic()
    for drawn in (middle, largest, smallest):
        assert sandwich(largest, smallest, drawn) == (largest, smallest, drawn)
    assert sandwich(largest, largest, largest) == (largest,)


def test_distillation_is_the_mean_divergence_over_counted_positions():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 5, 7, generator=generator) for _ in range(2))
    labels = torch.tensor([[1, IGNORED_LABEL, 2, 3, IGNORED_LABEL], [1, 1, IGNORED_LABEL, IGNORED_LABEL, 4]])
    places = [(0, 1), (0, 2), (1, 0), (1, 3)]
    expected = sum(
        F.kl_div(student[row, at].log_softmax(-1), teacher[row, at].softmax(-1), reduction="sum") for row, at in places
    )
    assert torch.allclose(distillation_loss(student, teacher, labels, items=None), expected / 4)
    assert torch.allclose(distillation_loss(student, teacher, labels, items=8), expected / 8)
    assert distillation_loss(teacher[:, 0], teacher[:, 0], torch.zeros(2), items=None) == 0


def test_the_loss_of_labels_is_the_mean_cross_entropy_of_the_next_token():
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, IGNORED_LABEL, 2, 3, IGNORED_LABEL], [1, 1, IGNORED_LABEL, IGNORED_LABEL, 4]])
    predicted = [((0, 1), 2), ((0, 2), 3), ((1, 0), 1), ((1, 3), 4)]
    expected = -sum(logits[row, at].log_softmax(-1)[token] for (row, at), token in predicted)
    assert torch.allclose(label_loss(logits, labels, items=None), expected / 4)
    assert torch.allclose(label_loss(logits, labels, items=8), expected / 8)
    classes = torch.tensor([3, 0])
    expected = -sum(logits[row, 0].log_softmax(-1)[classes[row]] for row in range(2))
    assert torch.allclose(label_loss(logits[:, 0], classes, items=None), expected / 2)


def test_sandwiched_training_lowers_the_loss(tmp_path):
    width = {"feed_forward": [100, 50]}
    train = {"steps": 20, "save_steps": 20, "sandwich": True, "distillation": True}
    recipe = tiny_recipe(tmp_path, masked=False, sparse=False, width=width, train=train)
    run_recipe(recipe, tmp_path / "run")
    log = open_artefact(tmp_path / "run" / "super_adapter", kind="super_adapter").path / "training_log.jsonl"
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    losses = [entry["loss"] for entry in entries if "loss" in entry]
    assert len(losses) == 4  # every five steps
    assert losses[-1] < 0.8 * losses[0]
    network = load_super_network(Run(tmp_path / "run"))
    tokenise = RowTokeniser(network.tokenizer, max_length=32, train_on_prompt=True)
    rows = tokenise(read_rows(tmp_path / "run" / "task", "validation"))
    batch = PadToBatch(0)(rows)
    with torch.no_grad():
        untrained = float(causal_loss(load_model(tmp_path / "run" / "base"), batch))
        for choice in (network.space.maximal(), network.space.minimal()):
            network.activate(choice)
            assert float(causal_loss(network.model, batch)) < 0.8 * untrained
