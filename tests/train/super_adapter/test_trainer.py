"""The trainer in memory: one draw per micro-batch, checkpoints that hold what a resume needs, divergence that shows
in the weights."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import Gemma2ForCausalLM, Gemma3Config, Gemma3TextConfig, TrainerCallback

from shearling.elastic.super_network import ADAPTER_FILE
from shearling.errors import ArtefactCorrupt, TrainingDiverged
from shearling.recipe.training import TrainSection
from tests.support.tiny_models import BEYOND, EOS, FAMILIES, PAD, build_tiny, longer_tokenizer
from tests.support.tiny_runs import tiny_network
from train.super_adapter.attention import SHORT_TOKENS, use_fast_attention
from train.super_adapter.choice_sampler import RankSampler
from train.super_adapter.tokenised_rows import IGNORED_LABEL
from train.super_adapter.trainer import (
    KEPT_CHECKPOINTS,
    SAMPLER_FILE,
    build_trainer,
    newest_checkpoint,
    training_arguments,
)

ROWS = [{"input_ids": list(range(3, 11)), "labels": list(range(3, 11))} for _ in range(12)]


def make(tmp_path, *callbacks, rows=ROWS, sampler=None, tokenizer=None, **train):
    network = tiny_network("llama_tied_gqa", masked=True)
    network.tokenizer = network.tokenizer if tokenizer is None else tokenizer
    section = TrainSection(**{"steps": 5, "batch_size": 2, "save_steps": 1, "precision": "fp32", **train})
    arguments = training_arguments(section, seed=0, precision="fp32", output=tmp_path)
    return build_trainer(
        network,
        rows,
        arguments=arguments,
        sampler=RankSampler(network.space, seed=0, **(sampler or {})),
        section=section,
        callbacks=list(callbacks),
    )


def test_each_micro_batch_trains_the_sub_network_that_was_drawn(tmp_path):
    trainer = make(tmp_path, gradient_accumulation=2)
    seen = []
    layer = trainer.network.layers["model.layers.1.mlp.up_proj"]
    layer.register_forward_hook(lambda module, _in, _out: seen.append(module.rank))
    trainer.train()
    sampler = RankSampler(trainer.network.space, seed=0)
    assert seen == [sampler.draw()["layers.1.up"] for _ in range(len(seen))]
    assert trainer.sampler.drawn == len(seen)
    assert len(seen) in (9, 10)  # the last accumulation of an epoch may be short


def test_the_largest_alone_is_sandwiched_with_nothing(tmp_path):
    """Once for each micro-batch, and its gradient counts in full."""
    gradients = []
    for sandwich in (False, True):
        callback, seen = Gradients(), []
        trainer = make(tmp_path / str(sandwich), callback, sampler={"largest_until": 3}, steps=3, sandwich=sandwich)
        layer = trainer.network.layers["model.layers.0.mlp.up_proj"]
        layer.register_forward_hook(lambda module, _in, _out, seen=seen: seen.append(module.rank))
        trainer.train()
        assert seen == [6, 6, 6]
        gradients.append(callback.seen)
    torch.testing.assert_close(*gradients, rtol=0, atol=0)
    seen = []
    trainer = make(tmp_path / "behind", sampler={"largest_until": 1, "kind": "shared"}, steps=3, sandwich=True)
    trainer.network.layers["model.layers.0.mlp.up_proj"].register_forward_hook(
        lambda module, _in, _out: seen.append(module.rank)
    )
    trainer.train()
    assert [seen[0], *seen[1:3], *seen[4:6]] == [6, 6, 2, 6, 2]
    assert len(seen) == 7


def test_a_nested_draw_trains_a_prefix_that_no_list_has_whole(tmp_path):
    callback = Gradients()
    trainer = make(tmp_path, callback, sampler={"kind": "nested"}, steps=1)
    number = next(at for at in range(99) if trainer.sampler.choice_at(at)["layers.0.qkv"] not in (6, 4, 2))
    trainer.sampler.drawn = number
    rank = trainer.sampler.choice_at(number)["layers.0.qkv"]
    trainer.train()
    assert {layer.rank for layer in trainer.network.layers.values()} == {rank}
    for name, gradient in callback.seen.items():
        ranks = gradient if name.endswith("lora_a") else gradient.T
        assert ranks[:rank].any(dim=1).all(), "all ranks of the prefix learn, not its last alone"
        assert not ranks[rank:].any()


class Gradients(TrainerCallback):
    """Keeps those of the newest step, of every weight that is trained."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        self.seen = {name: value.grad.clone() for name, value in model.named_parameters() if value.requires_grad}


def test_accumulated_batches_give_the_update_of_one_batch_with_all_their_rows(tmp_path):
    """Rows of unequal length, of which unequal parts are learnt: each token weighs the same, whichever batch has it."""
    rows = []
    for length, prompt in ((30, 3), (7, 5), (12, 1), (4, 2)):
        ids = [3 + (7 * length + place) % 50 for place in range(length)]
        rows.append({"input_ids": ids, "labels": [IGNORED_LABEL] * prompt + ids[prompt:]})
    gradients, updates = [], []
    for batch_size, accumulation in ((2, 2), (4, 1)):
        callback = Gradients()
        settings = {"steps": 1, "batch_size": batch_size, "gradient_accumulation": accumulation}
        trainer = make(tmp_path / str(batch_size), callback, rows=rows, sampler={"largest_until": 2}, **settings)
        trainer.train()
        assert trainer.sampler.drawn == accumulation
        gradients.append(callback.seen)
        updates.append(trainer.network.adapter_state())
    assert any(gradient.any() for gradient in gradients[0].values())
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(*updates, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("pad", "end", "expected"),
    [(PAD, EOS, PAD), (None, EOS, EOS), (BEYOND, EOS, EOS), (None, None, PAD), (BEYOND, None, PAD)],
)
def test_rows_are_filled_up_with_a_token_that_the_model_has_an_embedding_of(pad, end, expected, tmp_path):
    """Which of them the mask hides: the update is the same."""
    tokenizer, rows = longer_tokenizer(), [{name: ids[:5] for name, ids in row.items()} for row in ROWS]
    tokenizer.pad_token, tokenizer.eos_token = pad, end
    callbacks = [Gradients(), Gradients()]
    for callback, used in zip(callbacks, (tokenizer, None), strict=True):
        trainer = make(tmp_path / str(used is None), callback, rows=rows, tokenizer=used, steps=1)
        trainer.train()
        if used is not None:
            # The first of all tokens is the tiny tokenizer's padding.
            assert trainer.data_collator.pad_token_id == longer_tokenizer().convert_tokens_to_ids(expected)
    found, plain = (callback.seen for callback in callbacks)
    assert found.keys() == plain.keys()
    torch.testing.assert_close(found, plain)


def test_processes_do_not_send_each_other_the_masks(tmp_path):
    assert make(tmp_path).args.ddp_broadcast_buffers is False


def test_only_the_newest_checkpoints_are_kept_and_hold_the_adapter_alone(tmp_path):
    trainer = make(tmp_path)
    trainer.train()
    kept = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert kept == ["checkpoint-4", "checkpoint-5"]
    assert len(kept) == KEPT_CHECKPOINTS
    assert json.loads((tmp_path / "checkpoint-5" / SAMPLER_FILE).read_text()) == {"seed": 0, "drawn": 5}
    files = {path.name for path in (tmp_path / "checkpoint-5").iterdir()}
    assert ADAPTER_FILE in files
    assert "model.safetensors" not in files


def test_the_newest_checkpoint_is_the_highest_number_that_is_whole(tmp_path):
    assert newest_checkpoint(tmp_path / "none") is None
    for number, state in ((9, "{}"), (10, "{}"), (11, '{"global'), (12, None)):
        (tmp_path / f"checkpoint-{number}").mkdir()
        if state is not None:
            (tmp_path / f"checkpoint-{number}" / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-mine").mkdir()
    assert newest_checkpoint(tmp_path).name == "checkpoint-10"


class Poison(TrainerCallback):
    def on_step_end(self, args, state, control, model=None, **_):
        if state.global_step == 3:
            next(parameter for name, parameter in model.named_parameters() if name.endswith("lora_b")).data[0, 0] = (
                torch.nan
            )


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    with pytest.raises(TrainingDiverged, match=r"lora_B.weight is not finite after step 3, learning rate"):
        make(tmp_path, Poison()).train()
    assert newest_checkpoint(tmp_path).name == "checkpoint-2"


def test_a_checkpoint_of_another_seed_is_refused(tmp_path):
    make(tmp_path, steps=2).train()
    file = tmp_path / "checkpoint-2" / SAMPLER_FILE
    file.write_text(json.dumps({"seed": 1, "drawn": 2}))
    with pytest.raises(ArtefactCorrupt, match="seed is 1, expected 0"):
        make(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


@pytest.mark.parametrize(("gpu", "attention"), [(False, "eager"), (True, "sdpa")])
def test_plain_attention_is_for_short_rows_of_a_training_on_a_cpu(monkeypatch, gpu, attention):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    model = tiny_network(masked=False).model
    use_fast_attention(model, max_length=SHORT_TOKENS + 1)
    assert model.config._attn_implementation == "sdpa"
    use_fast_attention(model, max_length=SHORT_TOKENS)
    assert model.config._attn_implementation == attention


def test_attention_whose_scores_are_capped_stays_what_all_other_stages_compute(monkeypatch):
    """transformers caps them in the plain form alone."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = FAMILIES["gemma2"]().config
    config.attn_logit_softcapping = 1.0
    model, ids = build_tiny(Gemma2ForCausalLM, config), torch.arange(3, 35)[None]
    with torch.no_grad():
        before = model(ids).logits
        use_fast_attention(model, max_length=64)
        assert model.config._attn_implementation == "sdpa"
        assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize(("cap", "expected"), [(None, ["eager"]), (1.0, [])])
def test_a_cap_of_the_language_model_within_another_counts(cap, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    asked = []
    config = Gemma3Config(text_config=Gemma3TextConfig(attn_logit_softcapping=cap))
    use_fast_attention(SimpleNamespace(config=config, set_attn_implementation=asked.append), max_length=64)
    assert asked == expected
