"""Is `shearling-run` of the wheel as fast as the toolchain on the same export?

    make wheels
    python -m benchmarks.runtime_wheel runs/demo/sparse-int8 --wheel dist/shearling_runtime-*.whl

The wheel and the lock's `openvino-genai` are installed where there is nothing else, and `shearling-run --bench` there
is timed against `python -m serve bench` here. Both give GenAI's own times for the same work: prompts of one length,
greedy, end tokens ignored, no huge pages, on the same CPUs and with the same priority. A round is a process of each,
the first by turns, and only ratios within a round are compared. Like processes differ by more than is looked for, so
that many rounds are needed, on a machine that does nothing else.

The verdict is of the time of a token: "equal" where the interval of the median ratio lies within 2 %, "slower" where it
lies above (exit code 1), "faster", or "inconclusive". A process that fails ends the rounds with exit code 1; those
before it are told all the same.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.command import command
from serve.bench.environment import describe_environment
from serve.bench.statistics import Estimate, paired_ratio
from serve.visitor.own_process import pin, raise_priority
from shearling.console import log
from shearling.errors import ArtefactMissing, ShearlingError

ROOT = Path(__file__).resolve().parents[1]
TOLERANCE = 0.02
INSTALL_S, RUN_S = 900, 1800


@dataclass(frozen=True)
class Work:
    """What every process does.

    Attributes:
        repeats: generations of a process that count, after one that does not.
        threads: of the processor; None leaves them to OpenVINO.
    """

    prompt_tokens: int
    new_tokens: int
    repeats: int
    threads: int | None

    def arguments(self) -> list[str]:
        """Options that `shearling-run --bench` and `serve bench` share."""
        counts = {
            "--prompt-tokens": self.prompt_tokens,
            "--max-new-tokens": self.new_tokens,
            "--repeats": self.repeats,
            "--threads": self.threads,
        }
        return [part for name, count in counts.items() if count is not None for part in (name, str(count))]


@dataclass(frozen=True)
class Times:
    """Medians of one process."""

    ttft_s: float
    tpot_s: float


def install(wheel: Path, directory: Path) -> Path:
    """A fresh environment with the wheel and OpenVINO GenAI.

    Returns:
        Its directory of commands.

    Raises:
        ArtefactMissing: there is no such wheel.
    """
    if not wheel.is_file():
        raise ArtefactMissing("no such wheel", where=wheel, remedy="Build it with: make wheels")
    venv.create(directory, with_pip=False)
    commands = directory / "bin"
    pip = [sys.executable, "-m", "pip", "--python", str(commands / "python"), "install", "--quiet"]
    constraints = ["--constraint", str(ROOT / "constraints.txt")]
    subprocess.run([*pip, *constraints, str(wheel), "openvino-genai"], check=True, timeout=INSTALL_S)
    return commands


def time_wheel(commands: Path, export: Path, work: Work) -> tuple[Times, dict[str, Any]]:
    """One process of `shearling-run`, which finds no compiler and nothing of a checkout; its times, and all it says."""

    def prepare() -> None:
        # As the workers of `serve bench` do for themselves.
        pin(work.threads)
        raise_priority()

    command = [str(commands / "shearling-run"), str(export), "--bench", *work.arguments()]
    told = _run(command, prepare, PATH="", PYTHONPATH="")
    return Times(told["ttft_s"], told["tpot_s"]), told


def time_toolchain(export: Path, work: Work) -> tuple[Times, dict[str, Any]]:
    """One process of `serve bench`; its times, and what it ran."""
    options = ["--format", "openvino", "--no-huge-pages", *work.arguments()]
    told = _run([sys.executable, "-m", "serve", "bench", str(export), *options])
    samples = told["samples"]
    tpots_s = [sum(sample["gaps_s"]) / len(sample["gaps_s"]) for sample in samples]
    return Times(median(sample["ttft_s"] for sample in samples), median(tpots_s)), told["subjects"][0]["facts"]


def _run(command: Sequence[str], prepare: Callable[[], None] | None = None, **environment: str) -> dict[str, Any]:
    done = subprocess.run(
        [*command, "--json"],
        env={**os.environ, **environment},
        preexec_fn=prepare,
        capture_output=True,
        text=True,
        check=False,
        timeout=RUN_S,
    )
    if done.returncode != 0:
        raise ShearlingError(f"exit code {done.returncode}\n{done.stderr}", where=" ".join(command))
    return dict(json.loads(done.stdout))


def judge(ratio: Estimate) -> str:
    """What the interval of the wheel's time over the toolchain's says."""
    if ratio.low > 1 + TOLERANCE:
        return "slower"
    if ratio.high < 1 - TOLERANCE:
        return "faster"
    return "equal" if ratio.low >= 1 - TOLERANCE and ratio.high <= 1 + TOLERANCE else "inconclusive"


@command
def main(argv: list[str] | None = None) -> int:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.runtime_wheel", description=(__doc__ or "").partition("\n\n")[0]
    )
    parser.add_argument("export", type=Path, help="with OpenVINO")
    parser.add_argument("--wheel", type=Path, required=True, help="shearling_runtime-*.whl; `make wheels` builds it")
    parser.add_argument("--rounds", type=int, default=12, help="processes of each; default 12")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=6, help="generations of a process; default 6")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args(argv)
    work = Work(options.prompt_tokens, options.max_new_tokens, options.repeats, options.threads)
    rounds: list[tuple[Times, Times]] = []
    failure: ShearlingError | None = None
    with tempfile.TemporaryDirectory() as temporary:
        commands = install(options.wheel, Path(temporary) / "fresh")
        for number in range(options.rounds):
            try:
                first = time_toolchain(options.export, work) if number % 2 else None
                ours, wheel_facts = time_wheel(commands, options.export, work)
                theirs, toolchain_facts = first or time_toolchain(options.export, work)
            except ShearlingError as error:
                failure = error
                log.print(f"round {number + 1}: {error}", style="red")
                break
            rounds.append((ours, theirs))
            log.print(
                f"round {number + 1}: {1e3 * ours.tpot_s:.3f} ms a token, {1e3 * theirs.tpot_s:.3f} the toolchain"
            )
    if not rounds:
        return 1
    ratios = {
        name: paired_ratio([getattr(ours, name) for ours, _ in rounds], [getattr(theirs, name) for _, theirs in rounds])
        for name in ("tpot_s", "ttft_s")
    }
    verdict = judge(ratios["tpot_s"])
    told = {
        "export": str(options.export),
        "wheel": options.wheel.name,
        **asdict(work),
        "environment": describe_environment().model_dump(mode="json"),
        "packed": wheel_facts["packed"],
        "kernels": wheel_facts["kernels"],
        "toolchain": toolchain_facts,
        "rounds": [{"wheel": asdict(ours), "toolchain": asdict(theirs)} for ours, theirs in rounds],
        "ratio_of_wheel_to_toolchain": {name: ratio.model_dump() for name, ratio in ratios.items()},
        "failure": failure and str(failure),
        "verdict": verdict,
    }
    sys.stdout.write(json.dumps(told, indent=2) + "\n")
    return int(failure is not None or verdict == "slower")


if __name__ == "__main__":
    sys.exit(main())
