"""How often does `python -m serve check` cry wolf, and how often does it sleep?

    python -m benchmarks.latency_guard --model runs/demo/export/model [--checks 100] [--rivals 2]
    python -m benchmarks.latency_guard --model runs/demo/export/model --layers 2 --max-ratio 1.02 --budget 300
    python -m benchmarks.latency_guard --model runs/demo/export/model --weights int8-packed --rivals 0
    python -m benchmarks.latency_guard --export runs/demo/sparse-int8 --rivals 0

Two IRs of one model are made: as it is, and with a tenth more layers (copies of the last one, each with its own
weights). An export that exists is checked against itself alone.
Then so many checks of the model against itself, and as many of the longer model against it, taken in turns, while
rivals compute and rest on the same CPUs. Each check is the command itself, judged by its exit code. A run that was
interrupted goes on where it stopped, unless another state of the guard made what is there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from benchmarks.command import command
from benchmarks.kept_files import digest_of_model, digest_of_sources, keep_settings, whole_directory
from serve.bench.environment import describe_environment
from serve.bench.time_budget import CHECK_S
from shearling.console import progress
from shearling.errors import UsageError
from shearling.strict_json import drop_incomplete_line

MAX_RATIO = 1.05
MAX_FALSE_ALARMS, MIN_CAUGHT = 0.02, 0.95
MAX_OPEN_BESIDE_RIVALS = 0.1
"""Shares of checks that may be inconclusive, of either kind; without rivals as many as may be wrong."""
SHARP, MIN_CAUGHT_SHARP = 1.03, 0.9
"""At limits below it, fewer catches are good enough."""
OVERHEAD_S = 10.0
"""Of a check, beside its budget."""
LONGER = 0.1

SERVE = Path(__file__).resolve().parent.parent / "serve"
DECIDING = ("guard", "bench", "runtimes", "visitor")
"""Rooms of `serve` that decide a check: what measures, in whose process, and what judges. A journal is of one state of
them.
"""
TELLING = ("page.py", "pytest_plugin.py", "reports.py", "screen.py", "strip_chart.py", "telling.py")
"""Files there that only say what was decided: another word loses no journal."""

Weights = Literal["fp32", "int8", "int8-packed"]
"""Number format of the IRs, and whether the operators of this project run them, which leave zeros out."""

# Multiplies large matrices and rests, each for a random time: bandwidth, cache and CPU come and go. It ends with its
# parent.
RIVAL = """
import os, random, sys, time
import numpy as np
a = np.random.rand(1500, 1500).astype("float32")
while os.getppid() == int(sys.argv[1]):
    end = time.monotonic() + random.uniform(0.05, 4)
    while time.monotonic() < end:
        a @ a
    time.sleep(random.uniform(0.05, 2))
"""


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        kind: `same` or `longer`.
        outcome: pass, regression or inconclusive.
        load: of the machine, when it began.
    """

    kind: str
    outcome: str
    seconds: float
    load: float
    told: str


def prepare(model: Path, directory: Path, *, layers: int = 0, weights: Weights = "int8") -> Path:
    """An IR of a Hugging Face model with `layers` more layers, as `python -m export` writes it; made once."""
    if directory.is_dir():
        return directory
    from transformers import AutoTokenizer

    from export.formats.export_format import Storage
    from export.formats.openvino import write_openvino
    from shearling.model.checkpoint import load_model
    from shearling.registry.number_formats import NUMBER_FORMATS

    number_format, _, kernel = weights.partition("-")
    storage = Storage(NUMBER_FORMATS.get(number_format), sparse_kernel=bool(kernel))
    longer = lengthen(load_model(model), layers)
    with whole_directory(directory) as partial, warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        # Tracing warns of every Python branch in transformers' code, and progress bars are not the result.
        warnings.simplefilter("ignore")
        write_openvino(longer, AutoTokenizer.from_pretrained(str(model)), partial, storage, sparsity={})
    return directory


def lengthen(model: Any, layers: int) -> Any:
    """Append copies of the last decoder layer, each slightly different: equal ones would share one constant in the
    IR.
    """
    import copy

    import torch

    stack = model.model.layers
    generator = torch.Generator().manual_seed(0)
    for _ in range(layers):
        layer = copy.deepcopy(stack[-1])
        layer.self_attn.layer_idx = len(stack)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.mul_(1 + 0.01 * torch.randn(parameter.shape, generator=generator))
        stack.append(layer)
    model.config.num_hidden_layers = len(stack)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[0]] * len(stack)
    return model


@contextlib.contextmanager
def rivals(count: int) -> Iterator[list[int]]:
    """So many processes that work on the same CPUs, now and then; their ids."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, "-c", RIVAL, str(os.getpid())], env=environment) for _ in range(count)
    ]
    try:
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def run_check(
    kind: str, candidate: Path, reference: Path, *, max_ratio: float = MAX_RATIO, budget_s: float | None = None
) -> Check:
    """One `python -m serve check`, in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "serve",
        "check",
        str(candidate),
        "--against",
        str(reference),
        "--max-ratio",
        str(max_ratio),
        "--json",
    ]
    command += [] if budget_s is None else ["--budget", str(budget_s)]
    load, started_s = os.getloadavg()[0], time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - started_s
    if done.returncode not in (0, 1):
        raise SystemExit(f"the check ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    answer = json.loads(done.stdout)
    told = json.dumps(answer["ratios"]) if done.returncode == 0 else str(answer["message"])
    outcome = (
        "pass" if done.returncode == 0 else "regression" if told.startswith("latency regression") else "inconclusive"
    )
    return Check(kind, outcome, round(seconds, 1), round(load, 1), told)


def summarise(
    checks: Sequence[Check], *, max_ratio: float = MAX_RATIO, budget_s: float | None = None, busy: bool = False
) -> dict[str, Any]:
    """Both rates, and whether they are good enough.

    Args:
        checks: of both kinds.
        max_ratio: that they judged by.
        budget_s: of each, if not the command's own.
        busy: rivals ran beside them.
    """
    max_open = MAX_OPEN_BESIDE_RIVALS if busy else MAX_FALSE_ALARMS
    min_caught = min(MIN_CAUGHT if max_ratio >= SHARP else MIN_CAUGHT_SHARP, 1 - MAX_OPEN_BESIDE_RIVALS * busy)
    max_seconds = OVERHEAD_S + (budget_s or CHECK_S)
    same, longer = ([check for check in checks if check.kind == kind] for kind in ("same", "longer"))
    alarms = sum(check.outcome != "pass" for check in same)
    wrong = sum(check.outcome == "regression" for check in same)
    caught, missed = (sum(check.outcome == outcome for check in longer) for outcome in ("regression", "pass"))
    seconds = [check.seconds for check in checks]
    return {
        "same_model": len(same),
        "false_alarms": alarms,
        "of_them_inconclusive": sum(check.outcome == "inconclusive" for check in same),
        "longer_model": len(longer),
        "caught": caught,
        "inconclusive": sum(check.outcome == "inconclusive" for check in longer),
        "missed": missed,
        "seconds_median": statistics.median(seconds),
        "seconds_longest": max(seconds),
        "load_median": statistics.median(check.load for check in checks),
        "good_enough": wrong <= MAX_FALSE_ALARMS * len(same)
        and alarms <= max_open * len(same)
        and missed <= (1 - MIN_CAUGHT) * len(longer)
        and caught >= min_caught * len(longer)
        and max(seconds) <= max_seconds,
    }


def _read(path: Path) -> list[Check]:
    if not path.exists():
        return []
    drop_incomplete_line(path)
    return [Check(**json.loads(line)) for line in path.read_text().splitlines()]


def _name(options: argparse.Namespace) -> str:
    """Of what is counted, so that no journal mixes two kinds of checks."""
    subject = options.weights if options.export is None else options.export.resolve().name
    longer = "" if options.layers is None else f"-{options.layers}-layers"
    return f"{subject}{longer}-{options.max_ratio:g}-{options.rivals}-rivals"


@command
def main(argv: list[str] | None = None) -> int:
    """Make the models, check in turns, and print one JSON object."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.latency_guard", description=(__doc__ or "").partition("\n")[0]
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", type=Path, help="a Hugging Face directory, such as runs/demo/export/model")
    source.add_argument("--export", type=Path, help="what python -m serve takes, such as runs/demo/sparse-int8")
    parser.add_argument(
        "--work",
        type=Path,
        help="the two IRs and checks.jsonl, of one model, machine, guard and set of options; delete it to begin anew "
        "(default: one in runs/bench-guard for each kind)",
    )
    parser.add_argument("--checks", type=int, default=100, help="of each kind")
    parser.add_argument("--rivals", type=int, default=os.cpu_count() or 1, help="processes that disturb")
    parser.add_argument("--budget", type=float, help="seconds of each check, if not the command's own")
    parser.add_argument("--layers", type=int, help="that the longer model has more (default: a tenth)")
    parser.add_argument("--weights", choices=get_args(Weights), default="int8", help="of both IRs")
    parser.add_argument("--max-ratio", type=float, default=MAX_RATIO)
    options = parser.parse_args(argv)
    work = options.work or Path("runs/bench-guard") / _name(options)
    environment = describe_environment()
    conditions = {
        "model": digest_of_model(options.model or options.export),
        "weights": None if options.export else options.weights,
        "layers_added": options.layers,
        "max_ratio": options.max_ratio,
        "rivals": options.rivals,
        "budget_s": options.budget,
        "machine": environment.machine_id,
        "versions": environment.versions,
        "guard": digest_of_sources((SERVE / room for room in DECIDING), without=TELLING),
    }
    try:
        keep_settings(work, conditions, decisive=("guard",))
    except UsageError as error:
        parser.error(str(error))
    extra = 0
    if options.export is not None:
        reference, pairs = options.export, [("same", options.export)]
    else:
        layers = json.loads((options.model / "config.json").read_text())["num_hidden_layers"]
        extra = options.layers or max(1, round(LONGER * layers))
        reference = prepare(options.model, work / f"model-{options.weights}", weights=options.weights)
        longer = prepare(
            options.model, work / f"longer-{options.weights}-{extra}", layers=extra, weights=options.weights
        )
        pairs = [("same", reference), ("longer", longer)]
    journal = work / "checks.jsonl"
    checks = _read(journal)
    wanted = (pairs * options.checks)[len(checks) :]
    with rivals(options.rivals), progress("checks", total=len(wanted)) as advance:
        for kind, candidate in wanted:
            checks.append(run_check(kind, candidate, reference, max_ratio=options.max_ratio, budget_s=options.budget))
            with journal.open("a") as stream:
                stream.write(json.dumps(asdict(checks[-1])) + "\n")
            advance(note=f"{kind}: {checks[-1].outcome} in {checks[-1].seconds:.0f} s")
    summary = summarise(checks, max_ratio=options.max_ratio, budget_s=options.budget, busy=options.rivals > 0)
    facts = {
        "cpu": environment.cpu,
        "cpus": environment.usable_cpus,
        "rivals": options.rivals,
        "weights": None if options.export else options.weights,
        "max_ratio": options.max_ratio,
        "layers_added": extra,
    }
    sys.stdout.write(json.dumps({**facts, **summary}, indent=2) + "\n")
    return 0 if summary["good_enough"] else 1


if __name__ == "__main__":
    # Unwinds, so that a check and its rivals end with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
