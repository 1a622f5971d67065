"""Our export to OpenVINO beside that of optimum: time and memory, on the same model and format.

    python -m benchmarks.optimum_export runs/demo/base --weight-format int8 --rounds 3

Each export is a process of its own, one at a time; the order turns around with every round. Ours measures its gates as
well, which optimum has none of, so that it is measured a second time without them. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.command import command
from benchmarks.peak_memory import Measured, run_measured
from shearling.console import log
from shearling.errors import UsageError
from shearling.resources import in_words

OURS, WITHOUT_GATES, OPTIMUM = "ours", "ours, `--verify off`", "optimum"


def commands(model: Path, weight_format: str, directory: Path) -> dict[str, list[str]]:
    """Name -> what `python -m` is called with.

    Args:
        model: a base or sparse artefact, which is a Hugging Face directory.
        weight_format: that both know.
        directory: for what they write.
    """
    # Theirs sees no data; neither does ours then.
    rounding = ["--quantization", "fast"] if weight_format == "int4" else []
    ours = ["export", "--base", str(model), "--formats", "openvino", "--weight-format", weight_format, *rounding]
    theirs = ["optimum.commands.optimum_cli", "export", "openvino", "--model", str(model)]
    return {
        OURS: [*ours, "--output", str(directory / "ours")],
        WITHOUT_GATES: [*ours, "--verify", "off", "--output", str(directory / "unverified")],
        OPTIMUM: [
            *(*theirs, "--task", "text-generation-with-past", "--weight-format", weight_format),
            str(directory / "optimum"),
        ],
    }


def measure(model: Path, weight_format: str, *, rounds: int) -> dict[str, list[Measured]]:
    """Every export, once a round.

    Raises:
        UsageError: an export failed.
    """
    found: dict[str, list[Measured]] = {}
    for number in range(rounds):
        with tempfile.TemporaryDirectory(prefix="exports-") as directory:
            made = list(commands(model, weight_format, Path(directory)).items())
            for name, command in made if number % 2 == 0 else reversed(made):
                measured = run_measured(command)
                if measured.exit_code:
                    raise UsageError(f"{name} ends with {measured.exit_code}: {measured.log[-500:]}", where=model)
                log.print(f"round {number + 1}: {name}: {measured.seconds:.1f} s, {in_words(measured.peak_bytes)}")
                found.setdefault(name, []).append(measured)
    return found


def as_table(found: dict[str, list[Measured]]) -> str:
    """Medians, in Markdown."""
    lines = ["| export | seconds | peak of memory |", "|---|---:|---:|"]
    for name in (OURS, WITHOUT_GATES, OPTIMUM):
        seconds, peak = (median(getattr(item, key) for item in found[name]) for key in ("seconds", "peak_bytes"))
        lines.append(f"| {name} | {seconds:.1f} | {in_words(int(peak))} |")
    return "\n".join(lines)


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.optimum_export", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add("model", type=Path, help="a base or sparse artefact")
    add("--weight-format", choices=("fp32", "fp16", "int8", "int4"), default="int8", help="that both know")
    add("--rounds", type=int, default=3, help="how often each is made")
    options = parser.parse_args(arguments)
    found = measure(options.model.resolve(), options.weight_format, rounds=options.rounds)
    sys.stdout.write(as_table(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
