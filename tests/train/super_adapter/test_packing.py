"""Packed rows: loss and gradients are those of rows alone, for every attention, or the model is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shearling.errors import ModelUnsupported
from shearling.model.layers import find_layers
from shearling.recipe.training import TeacherSection, TrainSection
from tests.support.tiny_models import FAMILIES, MIXTURES
from tests.support.tiny_runs import tiny_network, tiny_recipe
from train.stage import run_recipe
from train.super_adapter import packing
from train.super_adapter.causal_loss import causal_loss
from train.super_adapter.choice_sampler import RankSampler
from train.super_adapter.packing import PackedRows, PadPacks, check_packing, pack, try_packing
from train.super_adapter.taught_loss import Teacher, taught_loss
from train.super_adapter.tokenised_rows import IGNORED_LABEL, PadToBatch
from train.super_adapter.trainer import build_trainer, training_arguments

PACKABLE = sorted(set(FAMILIES) - {"bloom"})


def make_rows(lengths=(13, 5, 21, 2, 9, 30), *, seed=0, answers_from=0):
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for length in lengths:
        ids = torch.randint(3, 300, (length,), generator=generator).tolist()
        ignored = min(answers_from, length - 1)
        labels = [IGNORED_LABEL] * ignored + ids[ignored:]
        rows.append({"input_ids": ids, "labels": labels, "gold": None, "length": length})
    return rows


def dataset_of(rows):
    import datasets

    return datasets.Dataset.from_list(rows)


@given(st.lists(st.integers(1, 60), max_size=200), st.integers(8, 48))
def test_every_row_is_in_one_pack_that_has_room_for_it(lengths, tokens):
    packs = list(pack(lengths, list(range(len(lengths)))[::-1], tokens=tokens))
    assert sorted(row for members in packs for row in members) == list(range(len(lengths)))
    for members in packs:
        assert sum(lengths[row] for row in members) <= tokens or len(members) == 1
    # No two packs of a window could be one.
    used = sorted(sum(lengths[row] for row in members) for members in packs)
    assert len(used) < 2 or used[0] + used[1] > tokens


def test_packs_follow_the_seed():
    rows = dataset_of(make_rows([7, 3, 5, 2, 6, 4, 8, 1] * 5))
    first, again, other = (PackedRows(rows, tokens=16, seed=seed).packs for seed in (1, 1, 2))
    assert first == again != other


def test_a_batch_of_packs_counts_positions_anew_and_keeps_its_labels():
    rows = make_rows([3, 2, 4], answers_from=1)
    batch = PadPacks(0)([rows[:2], rows[2:]])
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 0, 0], [0, 1, 2, 3, 0, 0, 0, 0]]
    assert batch["input_ids"][0].tolist() == [*rows[0]["input_ids"], *rows[1]["input_ids"], 0, 0, 0]
    assert batch["labels"][0].tolist() == [*rows[0]["labels"], *rows[1]["labels"], *[IGNORED_LABEL] * 3]
    # What the Trainer divides by.
    alone = PadToBatch(0)(rows)
    assert (batch["labels"] != IGNORED_LABEL).sum() == (alone["labels"] != IGNORED_LABEL).sum()


def loss_and_gradients(network, batch, loss_of):
    network.model.zero_grad()
    loss = loss_of(network.model, batch)
    loss.backward()
    return float(loss.detach()), [layer.lora_b.grad.clone() for layer in network.layers.values()]


@pytest.mark.parametrize("family", PACKABLE)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_rows_have_the_loss_and_gradients_of_rows_alone(family, attention):
    network = tiny_network(family, masked=True)
    network.model.set_attn_implementation(attention)
    rows = make_rows()
    for answers_from in (0, 4):
        rows = make_rows(answers_from=answers_from)
        alone = loss_and_gradients(network, PadToBatch(0)(rows), causal_loss)
        packed = loss_and_gradients(network, PadPacks(0)([rows[:3], rows[3:]]), causal_loss)
        assert packed[0] == pytest.approx(alone[0], abs=1e-5)
        for left, right in zip(packed[1], alone[1], strict=True):
            torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def test_a_teacher_compares_the_same_positions():
    network = tiny_network("llama", masked=True)
    teacher = Teacher(FAMILIES["llama"](), TeacherSection(prompt=1.0, answer=0.5, hidden=0.0))
    rows = make_rows(answers_from=4)
    alone, packed = (
        taught_loss(network.model, batch, teacher) for batch in (PadToBatch(0)(rows), PadPacks(0)([rows[:3], rows[3:]]))
    )
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-5)


def trained(tmp_path, rows, *, family="llama", **train):
    network = tiny_network(family, masked=True)
    section = TrainSection(steps=4, precision="fp32", learning_rate=0.01, schedule="constant", **train)
    arguments = training_arguments(section, seed=0, precision="fp32", output=tmp_path)
    trainer = build_trainer(
        network, rows, arguments=arguments, sampler=RankSampler(network.space, seed=0), section=section, callbacks=[]
    )
    trainer.args.logging_steps = 1
    trainer.train()
    return network, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("sandwich", [False, True])
def test_training_packed_is_training_unpacked(tmp_path, sandwich):
    rows = dataset_of(make_rows(answers_from=2))
    options = {"sandwich": sandwich, "distillation": sandwich}
    alone, losses = trained(tmp_path / "alone", rows, batch_size=len(rows), **options)
    packs = PackedRows(rows, tokens=40, seed=0)
    assert len(packs) < len(rows)
    packed, packed_losses = trained(tmp_path / "packed", packs, batch_size=len(packs), pack_tokens=40, **options)
    assert packed_losses == pytest.approx(losses, abs=1e-5)
    assert losses[-1] < losses[0]
    for left, right in zip(packed.layers.values(), alone.layers.values(), strict=True):
        torch.testing.assert_close(left.lora_b, right.lora_b, rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", PACKABLE)
def test_models_that_keep_rows_apart_pass(family):
    model = FAMILIES[family]()
    check_packing(model, 0)
    assert not model.training


@pytest.mark.parametrize("family", [*PACKABLE, *MIXTURES])
def test_a_small_model_shows_that_rows_are_kept_apart(family, monkeypatch):
    config, tried = {**FAMILIES, **MIXTURES}[family]().config, []
    config.num_hidden_layers = 4
    if getattr(config, "layer_types", None):
        config.layer_types = (config.layer_types * 2)[:4]
    before, check = config.to_dict(), packing.check_packing
    monkeypatch.setattr(packing, "check_packing", lambda model, pad: [tried.append(model), check(model, pad)])
    try_packing(config)
    assert [len(find_layers(model).layers) for model in tried] == [2]
    assert config.to_dict() == before


def test_a_small_model_shows_that_rows_are_not_kept_apart(tmp_path):
    with pytest.raises(ModelUnsupported, match="change with its neighbour"):
        run_recipe(tiny_recipe(tmp_path, family="bloom", train={"pack_tokens": 64}), tmp_path / "run")
    assert not (tmp_path / "run" / "sparse").exists()


def test_models_that_do_not_are_refused():
    with pytest.raises(ModelUnsupported, match="change with its neighbour") as caught:
        check_packing(FAMILIES["bloom"](), 0)
    assert "group_by_length" in caught.value.remedy
    model = FAMILIES["llama"]()
    forward = model.forward
    model.forward = lambda input_ids, use_cache: forward(input_ids, use_cache=use_cache)
    with pytest.raises(ModelUnsupported, match="takes no position ids"):
        check_packing(model, 0)
    # Rows are kept apart, but counted from the beginning of the pack.
    model = FAMILIES["llama"]()
    rotate = model.model.rotary_emb.forward
    model.model.rotary_emb.forward = lambda states, position_ids: rotate(
        states, torch.arange(states.shape[1])[None] ** 2
    )
    with pytest.raises(ModelUnsupported, match="of the largest behind another"):
        check_packing(model, 0)
