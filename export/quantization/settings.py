"""What the user asks of a quantization, and what is decided of it before any work."""

from __future__ import annotations

from collections.abc import Sequence
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

Algorithm = Literal["awq", "scale_estimation", "gptq"]
"""Of NNCF, instead of a preset; any of them go together."""
ALGORITHMS: dict[Algorithm, str] = {"awq": "AWQ", "scale_estimation": "scale estimation", "gptq": "GPTQ"}
"""In words."""

GROUP_SIZES = (32, 64, 128)
DEFAULT_GROUP_SIZE = 64
SAMPLES = 64
"""Windows that matrices are rounded on."""
TUNING_STEPS = 80
"""Of `best`."""
TUNING_BATCH = 8
"""Windows of a step."""


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
        awq: NNCF's algorithm of this name, instead of a preset.
        scale_estimation: likewise.
        gptq: likewise.
    """

    preset: Preset | None = None
    group_size: int | None = None
    dataset: tuple[str, ...] | None = None
    samples: int | None = None
    all_layers: bool = False
    ratio: float | None = None
    awq: bool = False
    scale_estimation: bool = False
    gptq: bool = False

    @property
    def algorithms(self) -> tuple[Algorithm, ...]:
        """Those of NNCF that were asked for."""
        return tuple(name for name in ALGORITHMS if getattr(self, name))

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
            "--awq": self.awq or None,
            "--scale-estimation": self.scale_estimation or None,
            "--gptq": self.gptq or None,
        }
        return {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True)
class PlannedQuantization:
    """How int4 will be made.

    Attributes:
        preset: None where algorithms of NNCF make it.
        group_size: columns that share a scale.
        narrower: whether a matrix that the group does not divide may take a smaller one.
        samples: windows that matrices are rounded on.
        tuning_steps: of the scales together; 0 leaves them as each matrix has them.
        all_layers: the embedding and the head too.
        ratio: share of the layers' weights in four bits.
        algorithms: of NNCF; none where a preset is used.
    """

    preset: Preset | None
    text: CalibrationText
    group_size: int
    narrower: bool
    samples: int
    tuning_steps: int
    all_layers: bool = False
    ratio: float = 1.0
    algorithms: tuple[Algorithm, ...] = ()

    def describe(self) -> dict[str, Any]:
        """What `--dry-run` says of it."""
        return {
            "quantization": method_of(self.preset, self.algorithms),
            "group_size": self.group_size,
            "dataset": list(self.text.names),
            "all_layers": self.all_layers,
            "ratio": self.ratio,
        }


def method_of(preset: Preset | None, algorithms: Sequence[Algorithm]) -> str:
    """What makes the integers, in words."""
    return preset or f"NNCF's {', '.join(ALGORITHMS[name] for name in algorithms)}"


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
    _check_algorithms(asked)
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
            instead = "leave the option out" if asked.algorithms else "use --quantization fast"
            raise UsageError("there is no text to calibrate on", where="--dataset", remedy=f"Name a file, or {instead}")
        return None
    preset = None if asked.algorithms else asked.preset or "balanced"
    return PlannedQuantization(
        preset=preset,
        text=text,
        group_size=asked.group_size or DEFAULT_GROUP_SIZE,
        narrower=asked.group_size is None,
        samples=asked.samples or SAMPLES,
        tuning_steps=TUNING_STEPS if preset == "best" else 0,
        all_layers=asked.all_layers,
        ratio=1.0 if asked.ratio is None else asked.ratio,
        algorithms=asked.algorithms,
    )


def _check_algorithms(asked: Quantization) -> None:
    """Refuse what algorithms of NNCF do not go with."""
    if not asked.algorithms:
        return
    first = f"--{asked.algorithms[0].replace('_', '-')}"
    if asked.preset is not None:
        raise UsageError(
            f"{asked.preset} rounds in its own way, and {ALGORITHMS[asked.algorithms[0]]} is one of NNCF's",
            where=first,
            remedy="Leave one of the two options out",
        )
    if asked.ratio == 0:
        raise UsageError(
            f"nothing would be in int4, which {ALGORITHMS[asked.algorithms[0]]} is for",
            where="--ratio",
            remedy=f"Use --weight-format int8 without {first}, or a larger share",
        )
