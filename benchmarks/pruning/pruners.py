"""The pruners and the texts that they read: each is keys of [sparsity]. A new one is one record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.quality.arms import ARMS, HEALED, Ratio, allocation_of
from benchmarks.quality.models import BenchmarkModel

Reading = Literal["task", "general", "both"]

DENSE, REFERENCE = "dense", "wanda"
"""What no pruner is better than, and what all are told against."""


@dataclass(frozen=True)
class Pruner:
    """One way of pruning.

    Attributes:
        name: on the command line, and of its cells' files.
        title: in tables, at most 24 characters.
        sparsity: keys of [sparsity], the ratio, the pattern and the calibration text excepted.
        reads_text: whether it looks at any.
    """

    name: str
    title: str
    sparsity: Mapping[str, Any]
    reads_text: bool = True

    def suits(self, ratio: Ratio) -> bool:
        """Whether it can prune so much: a pattern such as 2:4 has the same share in every layer."""
        return allocation_of(self.sparsity) == "uniform" or ratio.section["pattern"] == "unstructured"


def _of_arm(name: str) -> Pruner:
    """As an arm of the benchmark of quality prunes before it trains."""
    arm = ARMS[name]
    return Pruner(name, arm.title, arm.sparsity or {}, reads_text=name != "magnitude")


HEALING: Mapping[str, Any] = HEALED["healing"]

PRUNERS: Mapping[str, Pruner] = {
    pruner.name: pruner
    for pruner in (
        Pruner(DENSE, "dense", {"method": "magnitude"}, reads_text=False),
        *map(_of_arm, ("magnitude", "wanda", "sparsegpt", "alps", "refit", "swapped", "tuned", "owl", "searched")),
        Pruner("healed", "Wanda, refit, healed", HEALED),
        Pruner("healed-50", "refit, healed, 50 steps", {**HEALED, "healing": {**HEALING, "steps": 50}}),
        Pruner("healed-400", "refit, healed, 400 steps", {**HEALED, "healing": {**HEALING, "steps": 400}}),
        Pruner("sparsegpt-healed", "SparseGPT, healed", {"method": "sparsegpt", "healing": HEALING}),
        Pruner("alps-healed", "ALPS, healed", {"method": "alps", "healing": HEALING}),
        Pruner(
            "owl-sparsegpt-healed",
            "OWL, SparseGPT, healed",
            {"method": "sparsegpt", "allocation": "owl", "healing": HEALING},
        ),
    )
}
"""`dense` is the model as it came. `refit`, `swapped`, `owl` and `searched` prune by Wanda and refit every matrix;
`tuned` is ALPS with four passes of layer tuning. Those that are healed are not refit where their method moves the kept
weights by itself: healing moves them all again, and needs the time."""


def calibration(model: BenchmarkModel, reading: Reading, *, samples: int | None = None) -> dict[str, Any]:
    """[sparsity.calibration]: windows of the task's rows, of a general text, or of both by turns; healing reads other
    windows of the same.

    Args:
        model: whose calibration text is both.
        reading: which.
        samples: windows, instead of the model's number.
    """
    both = {**model.calibration, **({} if samples is None else {"samples": samples})}
    if reading == "task":
        return {key: both[key] for key in ("samples", "seq_len")}
    return {**both, "task_rows": reading == "both"}
