"""The steps of the demo of pruning: everything that is compared, made by the commands that a user would type."""

from __future__ import annotations

from pathlib import Path

from shearling.demo import stage_steps
from shearling.demo.derived_recipe import derive_recipe
from shearling.demo.shears.layout import LORA_RECIPE, SHEARS_RECIPE, ShearsLayout
from shearling.demo.stage_steps import Action, Scale, sharing


def plan_demo(layout: ShearsLayout, scale: Scale) -> list[Action]:
    """All steps, for a directory in any state."""
    smoke = scale == "smoke"
    shears = derive_recipe(SHEARS_RECIPE, layout.recipes / "shears-smoke.toml", smoke=smoke)
    lora = derive_recipe(LORA_RECIPE, layout.recipes / "lora-smoke.toml", smoke=smoke)
    pruned = layout.recipes / "merged-then-pruned.toml"
    derive_recipe(SHEARS_RECIPE, pruned, smoke=smoke, model=layout.lora.export / "model")
    return [
        *_ours(layout, shears),
        *_lora(layout, lora),
        _pruned_after(layout, pruned),
        *_exports(layout),
        *_comparison(layout, smoke=smoke),
    ]


def compared_models(layout: ShearsLayout) -> dict[str, Path]:
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


def compared_exports(layout: ShearsLayout) -> dict[str, Path]:
    """Role -> export artefact with OpenVINO, in the same order; what was pruned last would run as `sparse` does."""
    return {
        "dense": layout.dense_export,
        "lora": layout.lora.export,
        "sparse": layout.sparse_export,
        "ours": layout.run.export,
        "packed": layout.packed_export,
    }


def _ours(layout: ShearsLayout, recipe: Path) -> list[Action]:
    run = layout.run
    training = "Prune half of the weights, heal the rest, train elastic adapters under the mask"
    packing = ("--formats", "openvino", "--weight-format", "int8", "--sparse-kernel", "openvino")
    packed = layout.packed_export
    return [
        Action(stage_steps.train(training, recipe, run, expected_s=420)),
        Action(stage_steps.search("Search the rank of every layer", run, expected_s=75)),
        Action(stage_steps.export("Merge, export and verify", run, expected_s=85)),
        Action(
            stage_steps.export(
                "Export it once more, its zeros packed away", run, *packing, expected_s=60, output=packed
            )
        ),
    ]


def _lora(layout: ShearsLayout, recipe: Path) -> list[Action]:
    run, shared = layout.lora, (layout.run.base, layout.run.task)
    training = stage_steps.train(
        "Baseline: plain LoRA on the dense model", recipe, run, expected_s=140, also_from=shared
    )
    exporting = ("--formats", "hf,openvino", "--verify", "warn")
    return [
        Action(training, sharing(("task", "base"), source=layout.run, destination=run)),
        Action(stage_steps.search("Baseline: describe its only rank", run, expected_s=20)),
        Action(stage_steps.export("Baseline: merge and export it", run, *exporting, expected_s=30)),
    ]


def _pruned_after(layout: ShearsLayout, recipe: Path) -> Action:
    run = layout.pruned_after
    pruning = stage_steps.train(
        "Baseline: prune the merged LoRA model afterwards",
        recipe,
        run,
        expected_s=240,
        makes=run.sparse,
        also_from=(layout.lora.export, layout.run.task),
    )
    return Action(pruning, sharing(("task",), source=layout.run, destination=run))


def _exports(layout: ShearsLayout) -> list[Action]:
    return [
        Action(stage_steps.export_frozen("Export the dense model", layout.run.base, layout.dense_export)),
        Action(stage_steps.export_frozen("Export the pruned model", layout.run.sparse, layout.sparse_export)),
    ]


def _comparison(layout: ShearsLayout, *, smoke: bool) -> list[Action]:
    models, exports = tuple(compared_models(layout).values()), tuple(compared_exports(layout).values())
    work = ("--prompt-tokens", "32", "--max-new-tokens", "16", "--repeats", "2") if smoke else ("--repeats", "6")
    accuracy, speed = "Accuracy and bits per byte on unseen headlines", "Speed, all models interleaved"
    return [
        Action(stage_steps.evaluate(accuracy, models, layout.run.task, layout.evaluation, expected_s=190)),
        Action(stage_steps.bench(speed, exports, *work, output=layout.benchmark, expected_s=50)),
    ]
