"""What the user asks of a quantization, and what is decided of it before any work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from export.quantization.text import CalibrationText, find_text
from shearling.errors import UsageError
from shearling.model.head import Head

Preset = Literal["fast", "balanced", "best"]
"""fast      NNCF's rounding to the nearest, without data
balanced  rounded on calibration text, matrix by matrix
best      balanced, then the scales of all matrices tuned together against the model in float32"""

GROUP_SIZES = (32, 64, 128)
DEFAULT_GROUP_SIZE = 64
SAMPLES = 64
"""Windows that matrices are rounded on."""
TUNING_STEPS = 80
"""Of `best`."""


@dataclass(frozen=True)
class Quantization:
    """Options of `python -m export` that say how int4 is made.

    Attributes:
        preset: None is `balanced` where there is text to calibrate on, else `fast`.
        group_size: columns that share a scale; None is `DEFAULT_GROUP_SIZE`, and less where a layer is narrow.
        dataset: texts, by turns: `task`, or files; None is `task` where the run has rows.
        samples: windows of calibration text; None is `SAMPLES`.
        all_layers: the embedding and the head have four bits too, instead of eight.
        ratio: share of the layers' weights in four bits, the others in eight; None is all of them.
    """

    preset: Preset | None = None
    group_size: int | None = None
    dataset: tuple[str, ...] | None = None
    samples: int | None = None
    all_layers: bool = False
    ratio: float | None = None

    @property
    def asked_for(self) -> dict[str, Any]:
        """The options that were given."""
        options = {
            "--quantization": self.preset,
            "--group-size": self.group_size,
            "--dataset": self.dataset,
            "--num-samples": self.samples,
            "--all-layers": self.all_layers or None,
            "--ratio": self.ratio,
        }
        return {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True)
class PlannedQuantization:
    """How int4 will be made.

    Attributes:
        group_size: columns that share a scale.
        narrower: whether a matrix that the group does not divide may take a smaller one.
        samples: windows that matrices are rounded on.
        tuning_steps: of the scales together; 0 leaves them as each matrix has them.
        all_layers: the embedding and the head too.
        ratio: share of the layers' weights in four bits.
    """

    preset: Preset
    text: CalibrationText
    group_size: int
    narrower: bool
    samples: int
    tuning_steps: int
    all_layers: bool = False
    ratio: float = 1.0

    def describe(self) -> dict[str, Any]:
        """What `--dry-run` says of it."""
        return {
            "quantization": self.preset,
            "group_size": self.group_size,
            "dataset": list(self.text.names),
            "all_layers": self.all_layers,
            "ratio": self.ratio,
        }


def needs_copy(plan: PlannedQuantization) -> bool:
    """Whether rounding needs all of the rounded model beside the model itself."""
    return plan.tuning_steps > 0 or plan.ratio < 1 or plan.all_layers


def plan_quantization(asked: Quantization, *, weight_format: str, task: Path, head: Head) -> PlannedQuantization | None:
    """Decide; None where weights are rounded without data, or not to int4.

    Args:
        asked: by the user.
        weight_format: of the export.
        task: the run's `task` artefact, which need not exist.
        head: what the model is for.

    Raises:
        UsageError: options that contradict each other or the model, a text that is not there, or none where one is
            needed.
    """
    given = asked.asked_for
    if weight_format != "int4":
        if given:
            raise UsageError(
                f"it is for int4, and the weights will be {weight_format}",
                where=next(iter(given)),
                remedy="Give --weight-format int4, or leave the option out",
            )
        return None
    needless = given.keys() - {"--quantization"}
    if asked.preset == "fast" and needless:
        raise UsageError(
            "fast rounds without data, in groups of its own",
            where=min(needless),
            remedy="Use --quantization balanced, or leave the option out",
        )
    if asked.all_layers and head == "classifier":
        raise UsageError(
            "a classifier has no head over a vocabulary", where="--all-layers", remedy="Leave the option out"
        )
    text = None if asked.preset == "fast" else find_text(asked.dataset, task)
    if text is None:
        if asked.preset not in (None, "fast") or needless:
            raise UsageError(
                "there is no text to calibrate on", where="--dataset", remedy="Name a file, or use --quantization fast"
            )
        return None
    preset = asked.preset or "balanced"
    return PlannedQuantization(
        preset=preset,
        text=text,
        group_size=asked.group_size or DEFAULT_GROUP_SIZE,
        narrower=asked.group_size is None,
        samples=asked.samples or SAMPLES,
        tuning_steps=TUNING_STEPS if preset == "best" else 0,
        all_layers=asked.all_layers,
        ratio=1.0 if asked.ratio is None else asked.ratio,
    )
