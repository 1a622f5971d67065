"""Elastic widths against LoRA at full width, over seeds and training rules: the table of docs/results/lonas.md.

    python -m benchmarks.lonas_seeds --output runs/lonas-seeds [--seeds 0,1,2] [--rules published,sandwich,distillation]
        [--steps 4000] [--tune-steps 0] [--search-rows 3000] [--evaluations 60] [--macs 0.75]

For each seed the baseline is trained, LoRA at full width, and for each rule a super-network
(recipes/minilm-lonas.toml); a sandwiched step costs about three. The search runs on as many validation rows as asked
for, among sub-networks whose MACs are at most the given share of the largest's. With --tune-steps the most accurate
within the share is then trained alone (`python -m train tune`), in steps that the super-network goes without, so that
both take as many as the baseline. Told are the accuracies of the largest, the middle one, the one found, and that one
tuned. Runs that exist are used, so an interrupted benchmark goes on where it stopped; other options, or another
recipe, need another directory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.command import command
from benchmarks.kept_files import keep_settings
from search.strategies.grid import Indices
from shearling.demo.derived_recipe import RECIPES, plain_lora, render_toml
from shearling.elastic.subnet import open_subnet
from shearling.elastic.super_network import SuperNetwork, assemble_super_network, load_super_network
from shearling.errors import UsageError
from shearling.evaluation.classification import ClassifierEvaluator, TorchClassifier
from shearling.run import Run

RULES: Mapping[str, Mapping[str, bool]] = {
    "published": {},
    "sandwich": {"sandwich": True},
    "distillation": {"sandwich": True, "distillation": True},
}


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Train, search and evaluate what is missing; print one JSON object for each model."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lonas_seeds", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rules", default=",".join(RULES), help=f"of {', '.join(RULES)}")
    parser.add_argument(
        "--steps",
        type=int,
        default=4000,
        help="of the baseline, and of every super-network together with what is tuned of it",
    )
    parser.add_argument("--tune-steps", type=int, default=0, help="of these, on the best sub-network alone")
    parser.add_argument(
        "--search-rows",
        type=int,
        default=3000,
        help="validation rows that rank a sub-network, as far as there are so many",
    )
    parser.add_argument("--evaluations", type=int, default=60, help="sub-networks of a search")
    parser.add_argument("--macs", type=float, default=0.75, help="share of the largest sub-network's MACs")
    options = parser.parse_args(arguments)
    if not 0 <= options.tune_steps < options.steps:
        parser.error(f"--tune-steps {options.tune_steps} leaves no step of {options.steps} to the super-network")
    recipe = tomllib.loads((RECIPES / "minilm-lonas.toml").read_text(encoding="utf-8"))
    lengths = ("steps", "tune_steps", "search_rows", "evaluations", "macs")
    try:
        keep_settings(options.output, {"recipe": recipe, **{name: getattr(options, name) for name in lengths}})
    except UsageError as error:
        parser.error(str(error))
    for seed in map(int, options.seeds.split(",")):
        baseline = Run(options.output / f"lora-{seed}")
        train_s = _train(plain_lora(recipe), baseline, seed=seed, train={"steps": options.steps}, search={})
        network = load_super_network(baseline)
        _tell(
            baseline,
            network,
            seed=seed,
            rule="LoRA",
            label="full width",
            indices=network.space.encode(network.space.maximal()),
            train_s=train_s,
        )
        for rule in options.rules.split(","):
            run = Run(options.output / f"{rule}-{seed}")
            searched = {
                "limit": options.search_rows,
                "evaluations": options.evaluations,
                "max_cost_share": options.macs,
                "accuracy_delta": None,
            }
            steps = {"steps": options.steps - options.tune_steps}
            train_s = _train(recipe, run, seed=seed, train={**steps, **RULES[rule]}, search=searched)
            if not run.search.is_dir():
                _call("search", "--run", str(run.path))
            _tell_searched(run, seed=seed, rule=rule, share=options.macs, train_s=train_s)
            if options.tune_steps:
                _tell_tuned(run, seed=seed, rule=rule, steps=options.tune_steps)
    return 0


def _tell_searched(run: Run, *, seed: int, rule: str, share: float, train_s: float) -> None:
    network = load_super_network(run)
    space = network.space
    chosen: dict[str, Indices] = {
        "largest": space.encode(space.maximal()),
        "middle": space.encode(space.heuristic()),
        f"best within {share:.0%} of the MACs": space.encode(open_subnet(run.search / "best.json").subnet.choice),
    }
    for label, indices in chosen.items():
        _tell(run, network, seed=seed, rule=rule, label=label, indices=indices, train_s=train_s)


def _tell_tuned(run: Run, *, seed: int, rule: str, steps: int) -> None:
    document, started_s = run.path / "tuned.json", time.monotonic()
    if not document.is_file():
        _call("train", "tune", "--subnet", str(run.search / "best.json"), "--steps", str(steps))
    found = open_subnet(document)
    network = assemble_super_network(found.frozen, found.adapter, found.space)
    indices, train_s = found.space.encode(found.subnet.choice), time.monotonic() - started_s
    _tell(run, network, seed=seed, rule=rule, label=f"the same, {steps} steps alone", indices=indices, train_s=train_s)


def _tell(
    run: Run, network: SuperNetwork, *, seed: int, rule: str, label: str, indices: Indices, train_s: float
) -> None:
    from shearling.elastic.size import measure_network

    space, size = network.space, measure_network(network)
    choice = space.decode(indices)
    tokens = 64
    share = size.macs(tokens=tokens, cuts=space.cuts(choice)) / size.macs(
        tokens=tokens, cuts=space.cuts(space.maximal())
    )
    accuracy = {split: _accuracy(run, network, choice, split) for split in ("validation", "test")}
    facts = {
        "seed": seed,
        "rule": rule,
        "model": label,
        "macs_share": round(share, 3),
        **accuracy,
        "train_s": round(train_s),
    }
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def _accuracy(run: Run, network: SuperNetwork, choice: Mapping[str, int], split: Any) -> float:
    name = json.loads((run.task / "task.json").read_text())["name"]
    evaluator = ClassifierEvaluator(run.task, name, split=split)
    network.activate(choice)
    with network.materialised():
        scorer = TorchClassifier(network.model, network.tokenizer, max_length=evaluator.max_length, bf16=False)
        return evaluator.measure(scorer).accuracy


def _train(
    recipe: Mapping[str, Any], run: Run, *, seed: int, train: Mapping[str, Any], search: Mapping[str, Any]
) -> float:
    """Seconds that it took; 0 where it was there."""
    if run.super_adapter.is_dir():
        return 0.0
    found = {name: value for name, value in {**recipe["search"], **search, "seed": seed}.items() if value is not None}
    content = {**recipe, "seed": seed, "train": {**recipe["train"], **train}, "search": found}
    path = run.path.with_suffix(".toml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_toml(content), encoding="utf-8")
    started_s = time.monotonic()
    _call("train", "--recipe", str(path), "--output", str(run.path))
    return time.monotonic() - started_s


def _call(stage: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", stage, *arguments], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
