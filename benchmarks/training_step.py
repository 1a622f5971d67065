"""A training step of the super-network, masked and plain, against a stock PEFT LoRA step of the same rank, targets
and data.

    python -m benchmarks.training_step --base runs/demo/base [--batch-size 16 --tokens 32] [--repeats 15]

One process, one base, three models; a repeat times A B C C B A, so that drift of the machine falls on all alike.
Reported is
the median over repeats of the ratio to PEFT within one repeat, with a bootstrap interval: never milliseconds alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.command import command
from serve.bench.statistics import Estimate, bootstrap_median
from shearling.console import progress
from shearling.elastic.search_space import SearchSpace
from shearling.elastic.super_network import build_super_network
from shearling.evaluation.precision import resolve_precision
from shearling.model.checkpoint import load_model
from shearling.model.layers import find_layers
from shearling.recipe.adapter import AdapterSection
from train.super_adapter.adapter_space import build_search_space
from train.super_adapter.attention import use_fast_attention
from train.super_adapter.causal_loss import causal_loss
from train.super_adapter.choice_sampler import RankSampler
from train.super_adapter.tokenised_rows import IGNORED_LABEL

Batch = Mapping[str, Tensor]
Step = Callable[[Batch], float]

REFERENCE = "peft"
SHAPES = ((16, 32), (4, 256))
"""Rows x tokens of a micro-batch: short headlines, longer texts."""


@dataclass(frozen=True)
class Settings:
    """What is timed.

    Attributes:
        groups: group name -> module names, as in a recipe.
        sampled: draw ranks as training does; otherwise every step has the full rank, as PEFT's has.
        bf16: autocast.
    """

    rank: int
    groups: Mapping[str, tuple[str, ...]]
    sampled: bool
    bf16: bool
    learning_rate: float = 3e-4


@dataclass(frozen=True)
class Timing:
    """Steps of one shape.

    Attributes:
        seconds: median of a step, per variant.
        ratios: to the step of PEFT, per variant.
    """

    rows: int
    tokens: int
    seconds: dict[str, float]
    ratios: dict[str, Estimate]


def make_steps(load: Callable[[], nn.Module], settings: Settings) -> dict[str, Step]:
    """The three variants, each with its own model and optimiser.

    Args:
        load: gives a fresh model; half of its linear weights are then set to zero, the same in every variant.
        settings: what is measured.
    """
    return {
        REFERENCE: _peft_step(load(), settings),
        "plain": _nls_step(load(), settings, masked=False),
        "masked": _nls_step(load(), settings, masked=True),
    }


def compare(steps: Mapping[str, Step], batch: Batch, *, repeats: int, warmup: int = 2) -> Timing:
    """Time every variant twice in each repeat, in the order A B C C B A."""
    names = list(steps)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(warmup):
        for step in steps.values():
            step(batch)
    rows, tokens = batch["input_ids"].shape
    with progress(f"{rows} x {tokens} tokens", total=repeats) as advance:
        for _ in range(repeats):
            spent = dict.fromkeys(names, 0.0)
            for name in names + names[::-1]:
                started_s = time.perf_counter()
                steps[name](batch)
                spent[name] += (time.perf_counter() - started_s) / 2
            for name in names:
                seconds[name].append(spent[name])
            advance()
    ratios = {
        name: bootstrap_median(
            [own / reference for own, reference in zip(seconds[name], seconds[REFERENCE], strict=True)]
        )
        for name in names
        if name != REFERENCE
    }
    return Timing(
        rows, tokens, {name: float(torch.tensor(values).median()) for name, values in seconds.items()}, ratios
    )


def make_batch(rows: int, tokens: int, vocabulary: int, *, seed: int = 0, learnt: int | None = None) -> Batch:
    """Random token ids, the same for every variant; the last `learnt` of a row are its labels, or all of them."""
    ids = torch.randint(3, vocabulary, (rows, tokens), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    if learnt is not None:
        labels[:, :-learnt] = IGNORED_LABEL
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def _peft_step(model: nn.Module, settings: Settings) -> Step:
    # Here, after the libraries have been told to be quiet.
    from peft import LoraConfig, get_peft_model

    _prune(model)
    space = make_space(model, settings, masked=False)
    targets = sorted(space.ranks(space.maximal()))
    config = LoraConfig(
        r=settings.rank, lora_alpha=2 * settings.rank, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM"
    )
    adapted = get_peft_model(model, config)
    return _step(adapted, settings, loss=lambda batch: adapted(**batch, use_cache=False).loss)


def _nls_step(model: nn.Module, settings: Settings, *, masked: bool) -> Step:
    masks = _prune(model)
    space = make_space(model, settings, masked=masked)
    network = build_super_network(
        model, None, space, masks if masked else None, generator=torch.Generator().manual_seed(0)
    )
    sampler, maximal = RankSampler(space, seed=0), space.maximal()

    def loss(batch: Batch) -> Tensor:
        use_fast_attention(model, max_length=batch["input_ids"].shape[1])
        network.activate(sampler.draw() if settings.sampled else maximal)
        return causal_loss(model, batch)

    return _step(model, settings, loss=loss)


def make_space(model: nn.Module, settings: Settings, *, masked: bool) -> SearchSpace:
    """The groups of `settings`, every rank list [r, 3r/4, r/2]."""
    ranks = (settings.rank, settings.rank * 3 // 4, settings.rank // 2)
    groups = tuple({"name": name, "modules": modules, "ranks": ranks} for name, modules in settings.groups.items())
    section = AdapterSection.model_validate(
        {"r": settings.rank, "lora_alpha": 2.0 * settings.rank, "masked": masked, "groups": groups}
    )
    return build_search_space(section, find_layers(model), model_type="benchmark")


def _prune(model: nn.Module) -> dict[str, Tensor]:
    generator, masks = torch.Generator().manual_seed(0), {}
    with torch.no_grad():
        for path, linear in find_layers(model).linears().items():
            masks[path] = torch.rand(linear.weight.shape, generator=generator) < 0.5
            linear.weight.mul_(masks[path])
    return masks


def _step(model: nn.Module, settings: Settings, *, loss: Callable[[Batch], Tensor]) -> Step:
    model.train()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trainable, lr=settings.learning_rate)

    def step(batch: Batch) -> float:
        with torch.autocast("cpu", torch.bfloat16) if settings.bf16 else contextlib.nullcontext():
            value = loss(batch)
        value.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        return float(value.detach())

    return step


def _shapes(options: argparse.Namespace) -> Iterator[tuple[int, int]]:
    if options.batch_size is None and options.tokens is None:
        yield from SHAPES
    else:
        yield options.batch_size or SHAPES[0][0], options.tokens or SHAPES[0][1]


@command
def main(argv: list[str] | None = None) -> int:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training_step", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--base", type=Path, required=True, help="a base artefact or Hugging Face directory, such as runs/demo/base"
    )
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--tokens", type=int)
    parser.add_argument(
        "--learnt",
        type=int,
        help="labels of a row, at its end, as where answers alone are learnt; all tokens otherwise",
    )
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument(
        "--sampled", action="store_true", help="draw ranks as training does, instead of PEFT's full rank"
    )
    parser.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto")
    options = parser.parse_args(argv)
    groups = {"qkv": ("q_proj", "k_proj", "v_proj"), "up": ("up_proj",), "down": ("down_proj",)}
    settings = Settings(
        rank=options.rank, groups=groups, sampled=options.sampled, bf16=resolve_precision(options.precision) == "bf16"
    )
    steps = make_steps(lambda: load_model(options.base), settings)
    vocabulary = json.loads((options.base / "config.json").read_text())["vocab_size"]
    timings = [
        compare(steps, make_batch(rows, tokens, vocabulary, learnt=options.learnt), repeats=options.repeats)
        for rows, tokens in _shapes(options)
    ]
    facts = {
        "learnt": options.learnt,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "repeats": options.repeats,
        **asdict(settings),
    }
    shown = [
        {**asdict(timing), "ratios": {name: ratio.model_dump() for name, ratio in timing.ratios.items()}}
        for timing in timings
    ]
    sys.stdout.write(json.dumps({**facts, "timings": shown}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
