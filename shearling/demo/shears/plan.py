"""The steps of the demo of pruning: everything that is compared, made by the commands that a user would type."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shearling.demo import stage_steps
from shearling.demo.derived_recipe import derive_recipe
from shearling.demo.shears.layout import SHEARS_RECIPE, ShearsLayout
from shearling.demo.stage_steps import Action, Scale
from shearling.target import Target

SERVED = ("--formats", "openvino", "--weight-format", "int8")
"""How the models that are timed are exported."""


def plan_demo(layout: ShearsLayout, scale: Scale, peers: Sequence[Target] = ()) -> list[Action]:
    """All steps, for a directory in any state; peers are evaluated and timed beside what the demo makes."""
    smoke = scale == "smoke"
    recipe = derive_recipe(SHEARS_RECIPE, layout.recipes / "shears-smoke.toml", smoke=smoke)
    return [*_ours(layout, recipe), *_baselines(layout), *_comparison(layout, peers, smoke=smoke)]


def compared_models(layout: ShearsLayout) -> dict[str, Path]:
    """Role -> what is evaluated, in the order of the tables: what is timed is itself asked, the others are Hugging Face
    models.
    """
    return {
        "dense": layout.run.base,
        "lora": layout.lora_export,
        "sparse": layout.run.sparse,
        "ours": layout.run.export,
        "packed": layout.packed_export,
    }


def compared_exports(layout: ShearsLayout) -> dict[str, Path]:
    """Role -> what is timed, the reference first: two files of one number format."""
    return {"lora": layout.lora_export, "packed": layout.packed_export}


def _ours(layout: ShearsLayout, recipe: Path) -> list[Action]:
    run = layout.run
    training = "LoRA on the dense model; prune half of it, heal the rest, train elastic adapters under the mask"
    packing = (*SERVED, "--sparse-kernel", "openvino")
    packed = layout.packed_export
    return [
        Action(stage_steps.train(training, recipe, run, expected_s=480)),
        Action(stage_steps.search("Search the rank of every layer", run, expected_s=50)),
        Action(stage_steps.export("Merge, export and verify", run, expected_s=75)),
        Action(
            stage_steps.export(
                "Export it once more in int8, its zeros packed away", run, *packing, expected_s=60, output=packed
            )
        ),
    ]


def _baselines(layout: ShearsLayout) -> list[Action]:
    """What would be served without pruning."""
    title, lora = "Export the dense model with its LoRA in int8", layout.run.adapted
    return [Action(stage_steps.export_frozen(title, lora, *SERVED, output=layout.lora_export, expected_s=60))]


def _comparison(layout: ShearsLayout, peers: Sequence[Target], *, smoke: bool) -> list[Action]:
    models, exports = tuple(compared_models(layout).values()), tuple(compared_exports(layout).values())
    work = ("--prompt-tokens", "32", "--max-new-tokens", "16", "--repeats", "2") if smoke else ("--repeats", "6")
    accuracy, speed = "Accuracy and bits per byte on unseen headlines", "Speed, all models interleaved"
    return [
        Action(
            stage_steps.evaluate(
                accuracy, models, layout.run.task, layout.evaluation, expected_s=80 + 60 * len(peers), peers=peers
            )
        ),
        Action(
            stage_steps.bench(
                speed, exports, *work, output=layout.benchmark, expected_s=10 + 10 * len(peers), peers=peers
            )
        ),
    ]
