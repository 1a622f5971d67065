"""The steps of the demo of elastic widths: LoRA at full width beside the middle and the searched sub-network."""

from __future__ import annotations

from shearling.demo import stage_steps
from shearling.demo.derived_recipe import derive_recipe
from shearling.demo.lonas.layout import SUBJECTS, LonasLayout, ModelKind
from shearling.demo.stage_steps import Action, Scale, sharing
from shearling.demo.step import Step

HEURISTIC_ROW = 1
"""A search measures the maximal, the heuristic and the minimal sub-network first, in this order."""


def plan_demo(layout: LonasLayout, kind: ModelKind, scale: Scale, *, seed: int) -> list[Action]:
    """All steps, for a directory in any state."""
    subject, smoke = SUBJECTS[kind], scale == "smoke"
    lora = derive_recipe(subject.recipe, layout.recipes / "lora.toml", smoke=smoke, seed=seed, lora=True)
    lonas = derive_recipe(subject.recipe, layout.recipes / "lonas.toml", smoke=smoke, seed=seed)
    exporting = ("--formats", subject.formats, "--verify", "warn")
    shared = (layout.lonas.base, layout.lonas.task)
    training = stage_steps.train(
        "Train one super-network of elastic ranks and widths", lonas, layout.lonas, expected_s=120, also_from=shared
    )
    searching = "Search: least MACs at an accuracy within a point of the largest"
    cutting = "Cut the best sub-network to size and export it"
    exports = tuple(layout.exports.values())
    accuracy = "Accuracy on unseen headlines"
    return [
        Action(stage_steps.train("Baseline: LoRA at full width", lora, layout.lora, expected_s=120)),
        Action(stage_steps.search("Baseline: describe its only rank", layout.lora, expected_s=60)),
        Action(stage_steps.export("Baseline: merge and export it", layout.lora, *exporting, expected_s=30)),
        Action(training, sharing(("task", "base"), source=layout.lora, destination=layout.lonas)),
        Action(stage_steps.search(searching, layout.lonas, expected_s=60)),
        Action(stage_steps.export(cutting, layout.lonas, *exporting, expected_s=30)),
        Action(stage_steps.pick("Describe the middle sub-network", layout.lonas, HEURISTIC_ROW, layout.heuristic)),
        Action(
            stage_steps.export_document(
                "Cut it to size and export it", layout.heuristic, *exporting, output=layout.heuristic_export
            )
        ),
        Action(stage_steps.evaluate(accuracy, exports, layout.lonas.task, layout.evaluation, expected_s=30)),
        Action(_timing(layout, kind, smoke=smoke)),
    ]


def _timing(layout: LonasLayout, kind: ModelKind, *, smoke: bool) -> Step:
    exports = tuple(layout.exports.values())
    if kind == "encoder":
        blocks = ("--blocks", "4") if smoke else ()
        return stage_steps.time_forward(
            "Time of a forward, all models in turn", exports, *blocks, output=layout.forward
        )
    tokens, repeats = ("16", "2") if smoke else ("64", "6")
    work = ("--prompt-tokens", "32", "--max-new-tokens", tokens, "--repeats", repeats)
    return stage_steps.bench(
        "Time of a token, all models interleaved", exports, *work, output=layout.benchmark, expected_s=60
    )
