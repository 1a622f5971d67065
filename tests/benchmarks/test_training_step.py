"""The training step beside stock PEFT: the same work, and not out of all proportion; the figures come from the
benchmark itself."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.training_step import Settings, compare, main, make_batch, make_steps
from tests.support.tiny_models import save_tiny

pytestmark = pytest.mark.alone

GROUPS = {"qkv": ("q_proj", "k_proj", "v_proj"), "up": ("up_proj",), "down": ("down_proj",)}


def small_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=500,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config)


def test_the_variants_start_from_the_same_loss_and_all_learn():
    steps = make_steps(small_model, Settings(rank=8, groups=GROUPS, sampled=False, bf16=False, learning_rate=1e-2))
    batch = make_batch(4, 16, 500)
    losses = {name: [step(batch) for _ in range(6)] for name, step in steps.items()}
    assert losses["masked"][0] == losses["plain"][0]
    assert losses["plain"][0] == pytest.approx(losses["peft"][0], rel=1e-6)
    assert all(values[-1] < values[0] for values in losses.values())


@pytest.mark.parametrize("sampled", [True, False])
def test_a_step_is_not_out_of_proportion(sampled):
    # A bound against blunders, such as a merge per token; the machine may be busy with anything.
    steps = make_steps(small_model, Settings(rank=16, groups=GROUPS, sampled=sampled, bf16=False))
    timing = compare(steps, make_batch(8, 64, 500), repeats=7)
    assert timing.ratios["plain"].median < 2
    assert timing.ratios["masked"].median < 2.5


def test_the_command_prints_one_object(tmp_path, capsys):
    base = save_tiny("llama", tmp_path / "base")
    assert (
        main(
            [
                "--base",
                str(base),
                "--batch-size",
                "2",
                "--tokens",
                "8",
                "--repeats",
                "2",
                "--rank",
                "4",
                "--precision",
                "fp32",
            ]
        )
        == 0
    )
    (timing,) = json.loads(capsys.readouterr().out)["timings"]
    assert (timing["rows"], timing["tokens"]) == (2, 8)
    assert set(timing["seconds"]) == {"peft", "plain", "masked"}
    assert set(timing["ratios"]) == {"plain", "masked"}
