"""The demo's steps in order: everything that is compared, made by the commands that a user would type."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shearling.artefact import MANIFEST, remove_artefact, sha256_file
from shearling.console import log
from shearling.demo.derived_recipe import derive_recipe
from shearling.demo.layout import LORA_RECIPE, SHEARS_RECIPE, DemoLayout
from shearling.demo.step import Step

Scale = Literal["full", "smoke"]


@dataclass(frozen=True)
class Action:
    """A step, and what must be laid out just before it."""

    step: Step
    prepare: Callable[[], None] = lambda: None


def plan_demo(layout: DemoLayout, scale: Scale) -> list[Action]:
    """All steps, for a directory in any state."""
    smoke = scale == "smoke"
    shears = derive_recipe(SHEARS_RECIPE, layout.recipes / "shears-smoke.toml", smoke=smoke)
    lora = derive_recipe(LORA_RECIPE, layout.recipes / "lora-smoke.toml", smoke=smoke)
    pruned = layout.recipes / "merged-then-pruned.toml"
    derive_recipe(SHEARS_RECIPE, pruned, smoke=smoke, model=layout.lora.export / "model")
    return [
        *_ours(layout, shears),
        *_lora(layout, lora),
        *_pruned_after(layout, pruned),
        *_exports(layout),
        *_comparison(layout, smoke=smoke),
    ]


def compared_models(layout: DemoLayout) -> dict[str, Path]:
    """Role -> what is evaluated, in the order of the tables: Hugging Face models, and an OpenVINO one where nothing
    else holds the weights.
    """
    return {
        "dense": layout.run.base,
        "lora": layout.lora.export,
        "sparse": layout.run.sparse,
        "pruned_after": layout.pruned_after.sparse,
        "ours": layout.run.export,
        "packed": layout.packed_export,
    }


def compared_exports(layout: DemoLayout) -> dict[str, Path]:
    """Role -> export artefact with OpenVINO, in the same order; what was pruned last would run as `sparse` does."""
    return {
        "dense": layout.dense_export,
        "lora": layout.lora.export,
        "sparse": layout.sparse_export,
        "ours": layout.run.export,
        "packed": layout.packed_export,
    }


def _ours(layout: DemoLayout, recipe: Path) -> list[Action]:
    run, root = layout.run, str(layout.path)
    train = ("-m", "train", "--recipe", _short(recipe), "--out", root)
    export = ("-m", "export", "--subnet", str(run.search / "best.json"))
    packed = (
        *export,
        "--formats",
        "openvino",
        "--weight-format",
        "int8",
        "--sparse-kernel",
        "openvino",
        "--output",
        str(layout.packed_export),
    )
    return [
        Action(
            Step(
                "Prune half of the weights (Wanda) and train elastic adapters under the mask",
                train,
                run.super_adapter,
                (recipe,),
                190,
            )
        ),
        Action(
            Step(
                "Search the rank of every layer", ("-m", "search", "--run", root), run.search, (run.super_adapter,), 75
            )
        ),
        Action(Step("Merge, export and verify", export, run.export, (run.search,), 85)),
        Action(Step("Export it once more, its zeros packed away", packed, layout.packed_export, (run.search,), 60)),
    ]


def _lora(layout: DemoLayout, recipe: Path) -> list[Action]:
    run, root = layout.lora, str(layout.lora.path)

    def prepare() -> None:
        for name in ("task", "base"):
            share(layout.path / name, run.path / name)

    train = ("-m", "train", "--recipe", _short(recipe), "--out", root)
    export = ("-m", "export", "--subnet", str(run.search / "best.json"), "--formats", "hf,openvino", "--verify", "warn")
    return [
        Action(
            Step(
                "Baseline: plain LoRA on the dense model",
                train,
                run.super_adapter,
                (recipe, layout.run.base, layout.run.task),
                140,
            ),
            prepare,
        ),
        Action(
            Step(
                "Baseline: describe its only rank",
                ("-m", "search", "--run", root),
                run.search,
                (run.super_adapter,),
                20,
            )
        ),
        Action(Step("Baseline: merge and export it", export, run.export, (run.search,), 30)),
    ]


def _pruned_after(layout: DemoLayout, recipe: Path) -> list[Action]:
    run = layout.pruned_after

    def prepare() -> None:
        share(layout.run.task, run.task)

    train = ("-m", "train", "--recipe", _short(recipe), "--out", str(run.path))
    inputs = (recipe, layout.lora.export, layout.run.task)
    return [
        Action(Step("Baseline: prune the merged LoRA model afterwards", train, run.sparse, inputs, 60), prepare),
    ]


def _exports(layout: DemoLayout) -> list[Action]:
    run = layout.run
    return [
        Action(
            Step(
                "Export the dense model",
                _export_frozen(run.base, layout.dense_export),
                layout.dense_export,
                (run.base,),
                30,
            )
        ),
        Action(
            Step(
                "Export the pruned model",
                _export_frozen(run.sparse, layout.sparse_export),
                layout.sparse_export,
                (run.sparse,),
                30,
            )
        ),
    ]


def _comparison(layout: DemoLayout, *, smoke: bool) -> list[Action]:
    models, exports = tuple(compared_models(layout).values()), tuple(compared_exports(layout).values())
    evaluate = ("-m", "shearling", "evaluate", *map(str, models), "--task", str(layout.run.task), "--split", "test")
    work = ("--prompt-tokens", "32", "--new-tokens", "16", "--repeats", "2") if smoke else ("--repeats", "6")
    bench = (
        "-m",
        "serve",
        "bench",
        *map(str, exports),
        "--format",
        "openvino",
        *work,
        "--output",
        str(layout.benchmark),
    )
    return [
        Action(
            Step(
                "Accuracy and bits per byte on unseen headlines",
                evaluate,
                layout.evaluation,
                (*models, layout.run.task),
                190,
                keep_json=True,
            )
        ),
        Action(Step("Speed, all models interleaved", bench, layout.benchmark, exports, 50)),
    ]


def _export_frozen(source: Path, destination: Path) -> tuple[str, ...]:
    return (
        "-m",
        "export",
        "--base",
        str(source),
        "--output",
        str(destination),
        "--formats",
        "openvino",
        "--verify",
        "warn",
    )


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
        shutil.copytree(source, copied, copy_function=_link)
        copied.rename(destination)
    log.print(f"{destination} is {source}, shared by hard links", style="dim")


def _link(source: str, destination: str) -> None:
    try:
        os.link(source, destination)
    except OSError:
        # A file system without hard links.
        shutil.copyfile(source, destination)


def _short(path: Path) -> str:
    working = Path.cwd()
    return str(path.relative_to(working)) if path.is_relative_to(working) else str(path)
