"""The steps that the demos are made of, one for each command of the stages; and what runs share."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shearling.artefact import MANIFEST, remove_artefact, sha256_file
from shearling.console import log
from shearling.demo.step import Step
from shearling.hard_link import link_or_copy
from shearling.run import Run
from shearling.target import Target

Scale = Literal["full", "smoke"]


@dataclass(frozen=True)
class Action:
    """A step, and what must be laid out just before it."""

    step: Step
    prepare: Callable[[], None] = lambda: None


def train(title: str, recipe: Path, run: Run, *, expected_s: float, also_from: Sequence[Path] = ()) -> Step:
    """`python -m train`.

    Args:
        title: of the step.
        recipe: to follow.
        run: where it goes.
        expected_s: see `Step`.
        also_from: what it takes from other runs.
    """
    command = ("-m", "train", "--recipe", _short(recipe), "--output", str(run.path))
    return Step(title, command, run.super_adapter, (recipe, *also_from), expected_s)


def search(title: str, run: Run, *, expected_s: float) -> Step:
    """`python -m search`."""
    return Step(title, ("-m", "search", "--run", str(run.path)), run.search, (run.super_adapter,), expected_s)


def pick(title: str, run: Run, row: int, output: Path) -> Step:
    """`python -m search pick`: the document of one row of the journal."""
    command = ("-m", "search", "pick", "--run", str(run.path), "--row", str(row), "--output", str(output))
    return Step(title, command, output, (run.search,), 5)


def export(title: str, run: Run, *options: str, expected_s: float, output: Path | None = None) -> Step:
    """`python -m export` of the best sub-network of a run; to where the command puts it, unless told otherwise."""
    elsewhere = () if output is None else ("--output", str(output))
    command = ("-m", "export", "--subnet", str(run.search / "best.json"), *options, *elsewhere)
    return Step(title, command, output or run.export, (run.search,), expected_s)


def export_document(title: str, subnet: Path, *options: str, output: Path) -> Step:
    """`python -m export` of another sub-network."""
    command = ("-m", "export", "--subnet", str(subnet), *options, "--output", str(output))
    return Step(title, command, output, (subnet,), 30)


def export_frozen(title: str, model: Path, *options: str, output: Path, expected_s: float) -> Step:
    """`python -m export` of a model without any adapter; a baseline is compared whatever its gates say."""
    command = ("-m", "export", "--base", str(model), *options, "--verify", "warn", "--output", str(output))
    return Step(title, command, output, (model,), expected_s)


def evaluate(
    title: str, models: Sequence[Path], task: Path, output: Path, *, expected_s: float, peers: Sequence[Target] = ()
) -> Step:
    """`shearling evaluate` on unseen rows, of our own models and of others beside them."""
    named = (*map(str, models), *(peer.label for peer in peers))
    command = ("-m", "shearling", "evaluate", *named, "--tasks", str(task), "--split", "test")
    inputs = (*models, task, *(peer.path for peer in peers))
    return Step(title, command, output, inputs, expected_s, keep_json=True)


def bench(
    title: str,
    exports: Sequence[Path],
    *options: str,
    output: Path,
    expected_s: float,
    peers: Sequence[Target] = (),
) -> Step:
    """`python -m serve bench`: our exports on OpenVINO, and each peer in what runs it."""
    named = (*map(str, exports), *(peer.label for peer in peers))
    # A format that is asked for holds for all of them; without it a directory with several runs on OpenVINO.
    asked = () if peers else ("--format", "openvino")
    command = ("-m", "serve", "bench", *named, *asked, *options, "--output", str(output))
    return Step(title, command, output, (*exports, *(peer.path for peer in peers)), expected_s)


def time_forward(title: str, exports: Sequence[Path], *options: str, output: Path) -> Step:
    """`python -m serve forward`."""
    command = ("-m", "serve", "forward", *map(str, exports), *options)
    return Step(title, command, output, tuple(exports), 30, keep_json=True)


def sharing(names: Sequence[str], *, source: Run, destination: Run) -> Callable[[], None]:
    """What gives a run the artefacts of these names from another."""

    def prepare() -> None:
        for name in names:
            share(source.path / name, destination.path / name)

    return prepare


def share(source: Path, destination: Path) -> None:
    """Give another run the same artefact without copying its bytes: hard links, which no writer of artefacts changes
    in place.
    """
    if (destination / MANIFEST).is_file() and sha256_file(destination / MANIFEST) == sha256_file(source / MANIFEST):
        return
    remove_artefact(destination)
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=f".{destination.name}.") as temporary:
        copied = Path(temporary) / destination.name
        shutil.copytree(source, copied, copy_function=link_or_copy)
        copied.rename(destination)
    log.print(f"{destination} is {source}, shared by hard links", style="dim")


def _short(path: Path) -> str:
    working = Path.cwd()
    return str(path.relative_to(working)) if path.is_relative_to(working) else str(path)
