"""The arms: each a way of pruning and training, as changes to the sections of a recipe. A new arm is one record.

What they share, the model's adapters, steps and rate, stands in `benchmarks.quality.models`, so that the baseline is
trained as well as any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from shearling.model.head import Head
from shearling.registry.pruning_patterns import PRUNING_PATTERNS

BASELINE = "dense-taught"
"""The arm that the others are told against: LoRA on dense weights, taught to keep the language as the others are."""
PIPELINE = "adapted-elastic"
"""The arm that is today's recipe."""
LORA_STEPS = 200
"""Of the LoRA on dense weights that is the baseline, and that the `adapted` arms begin with. 100 leave seven points of
poker hands unlearnt that 200 learn, and two of headlines that 300 do (docs/log/training.md)."""


@dataclass(frozen=True)
class Arm:
    """One way of pruning and training.

    Attributes:
        name: on the command line, and of its cells' files.
        title: in tables, at most 24 characters.
        sparsity: keys of [sparsity], the ratio and the pattern excepted; None leaves the model dense.
        quantization: keys of [quantization]; None trains floating-point weights.
        adapter: keys of [adapter] that differ from the model's, the groups excepted.
        train: keys of [train] that differ from the model's.
        task: keys of [task] that differ from the task's.
        ranks: fixed: the largest alone; elastic: the model's list of ranks, and a search among them. An elastic arm
            says how ranks are drawn and scaled, so that its cells stay its own when the defaults of recipes change.
        forwards: of a micro-batch; the steps are divided by it, so that arms are compared at equal forwards.
        adapted: LoRA is trained as in the baseline and merged before anything is pruned.
        served: of a dense arm, what others make of it is measured as well: files of OpenVINO and of llama.cpp.
    """

    name: str
    title: str
    sparsity: Mapping[str, Any] | None
    quantization: Mapping[str, Any] | None = None
    adapter: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    task: Mapping[str, Any] = field(default_factory=dict)
    ranks: Literal["fixed", "elastic"] = "fixed"
    forwards: int = 1
    adapted: bool = False
    served: bool = False

    def suits(self, head: Head, ratio: Ratio) -> bool:
        """Whether a model can have it with the ratio.

        A pattern such as 2:4 has the same share in every layer; and the head of an encoder is new, and learnt with the
        adapters, so that there is no loss by which shares could be searched before.
        """
        allocation = allocation_of(self.sparsity)
        known = head == "language_model" or not (self.adapted or allocation == "searched")
        return known and (allocation == "uniform" or ratio.section["pattern"] == "unstructured")


def allocation_of(sparsity: Mapping[str, Any] | None) -> str:
    """How layers share the zeros that keys of [sparsity] ask for; "uniform" where there are none."""
    allocation: str = "uniform" if sparsity is None else sparsity.get("allocation", "uniform")
    return allocation


REFIT: Mapping[str, Any] = {"method": "wanda", "reconstruction": {"matrix_steps": 15}}
SWAPPED: Mapping[str, Any] = {"method": "wanda", "reconstruction": {"swaps": 50, "matrix_steps": 15}}
"""Half of a row of 576 weights is 288 zeros, a sixth of which may move."""
HEALED: Mapping[str, Any] = {**REFIT, "healing": {"steps": 100, "batch_size": 8, "seq_len": 64}}
TAUGHT: Mapping[str, Any] = {"teacher": {"prompt": 0.1}}
BY_THE_ADAPTED: Mapping[str, Any] = {"teacher": {"prompt": 0.1, "answer": 1.0}}
SHARED: Mapping[str, Any] = {"draw": "shared", "largest_first": 0.5}
BY_RANK: Mapping[str, Any] = {"scaling": "rank"}
AS_PUBLISHED: Mapping[str, Any] = {"draw": "independent", "largest_first": 0.0}
CONSTANT: Mapping[str, Any] = {"scaling": "constant"}
PROGRESSIVE: Mapping[str, Any] = {**SHARED, "shrinking": "progressive"}
NESTED: Mapping[str, Any] = {**SHARED, "draw": "nested"}
SANDWICHED: Mapping[str, Any] = {"draw": "shared", "largest_first": 0.0, "sandwich": True}


def _drawn_otherwise(name: str, teacher: Mapping[str, Any], *, adapted: bool = False) -> Iterator[Arm]:
    """What `elastic` or `adapted-elastic` becomes where other sub-networks are trained, or at other times."""
    for what, title, adapter, train, forwards in (
        ("progressive", "progressive", BY_RANK, PROGRESSIVE, 1),
        ("nested", "nested", CONSTANT, NESTED, 1),
        ("nested-by-rank", "nested by rank", BY_RANK, NESTED, 1),
        ("sandwich", "sandwich", BY_RANK, SANDWICHED, 3),
    ):
        yield Arm(
            f"{name}-{what}",
            f"{name}, {title}",
            sparsity=HEALED,
            adapter=adapter,
            train={**teacher, **train},
            ranks="elastic",
            forwards=forwards,
            adapted=adapted,
        )


ARMS: Mapping[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("dense", "dense, LoRA", sparsity=None),
        Arm(BASELINE, "dense, LoRA, taught", sparsity=None, train={**TAUGHT, "steps": LORA_STEPS}, served=True),
        Arm("dense-twice", "dense, LoRA twice", sparsity=None, train=BY_THE_ADAPTED, adapted=True),
        Arm("magnitude", "magnitude", sparsity={"method": "magnitude"}),
        Arm("wanda", "Wanda", sparsity={"method": "wanda"}),
        Arm("wanda-apart", "Wanda, adapter apart", sparsity={"method": "wanda"}, adapter={"masked": False}),
        Arm(
            "wanda-elastic",
            "Wanda, elastic",
            sparsity={"method": "wanda"},
            adapter=CONSTANT,
            train=AS_PUBLISHED,
            ranks="elastic",
        ),
        Arm("sparsegpt", "SparseGPT", sparsity={"method": "sparsegpt"}),
        Arm("alps", "ALPS", sparsity={"method": "alps"}),
        Arm("refit", "Wanda, refit", sparsity=REFIT),
        Arm("swapped", "Wanda, swaps, refit", sparsity=SWAPPED),
        Arm("tuned", "ALPS, layers tuned", sparsity={"method": "alps", "reconstruction": {"layer_epochs": 4}}),
        Arm("owl", "OWL, refit", sparsity={**REFIT, "allocation": "owl"}),
        Arm("searched", "shares searched, refit", sparsity={**REFIT, "allocation": "searched"}),
        Arm("healed", "healed", sparsity=HEALED),
        Arm("owl-healed", "OWL, healed", sparsity={**HEALED, "allocation": "owl"}),
        Arm("taught", "healed, taught", sparsity=HEALED, train=TAUGHT),
        Arm(
            "elastic",
            "healed, taught, elastic",
            sparsity=HEALED,
            adapter=BY_RANK,
            train={**TAUGHT, **SHARED},
            ranks="elastic",
        ),
        Arm("adapted", "LoRA, healed, LoRA", sparsity=HEALED, train=BY_THE_ADAPTED, adapted=True),
        Arm(
            PIPELINE,
            "LoRA, healed, elastic",
            sparsity=HEALED,
            adapter=BY_RANK,
            train={**BY_THE_ADAPTED, **SHARED},
            ranks="elastic",
            adapted=True,
        ),
        Arm(
            "adapted-apart",
            "the same, apart",
            sparsity=HEALED,
            adapter={**BY_RANK, "masked": False},
            train={**BY_THE_ADAPTED, **SHARED},
            ranks="elastic",
            adapted=True,
        ),
        Arm(
            "adapted-int4",
            "the same, on int4",
            sparsity=HEALED,
            quantization={"bits": 4},
            adapter=BY_RANK,
            train={**BY_THE_ADAPTED, **SHARED},
            ranks="elastic",
            adapted=True,
        ),
        Arm(
            "adapted-int4-apart",
            "on int4, apart",
            sparsity=HEALED,
            quantization={"bits": 4},
            adapter={**BY_RANK, "masked": False},
            train={**BY_THE_ADAPTED, **SHARED},
            ranks="elastic",
            adapted=True,
        ),
        Arm(
            "elastic-drawn",
            "the same, drawn apart",
            sparsity=HEALED,
            adapter=CONSTANT,
            train={**TAUGHT, **AS_PUBLISHED},
            ranks="elastic",
        ),
        *_drawn_otherwise("elastic", TAUGHT),
        *_drawn_otherwise("adapted", BY_THE_ADAPTED, adapted=True),
    )
}
"""`dense-taught` gives the baseline the teacher of the arms that are taught, the dense base. The `adapted` arms begin
with that model: its LoRA is merged, the result pruned, healed towards it on rows with their answers, and then trained
with it as the teacher; so they go over the task three times, and what the second left is their `frozen` figure.
`adapted-elastic` is the pipeline of the shipped recipe (smollm2-shears.toml), but not its run: half of the calibration
text and of the text of the healing is a general one, where the recipe reads rows of the task alone, and the output
projections have ranks of their own, so that a layer has four groups instead of three. `dense-twice` gives the baseline
a second training. `adapted-apart`, `adapted-int4-apart`, `adapted-elastic` and `adapted-int4` are the four pipelines of
SQFT: adapters beside sparse weights or beside sparse int4, and merged into either. `wanda-apart` says what the mask
costs without all that.

`elastic-progressive`, `-nested`, `-nested-by-rank` and `-sandwich` change how `elastic` draws ranks, at as many
forwards; those of `adapted-` do so for `adapted-elastic`. Of the two nested ones the former scales every rank alike, as
nested dropout does, the latter a prefix by its length, as `elastic` does."""


@dataclass(frozen=True)
class Ratio:
    """How much is pruned.

    Attributes:
        text: as on the command line, "0.5" or "2:4".
        section: its keys of [sparsity].
    """

    text: str
    section: Mapping[str, Any]

    @property
    def title(self) -> str:
        """As shown: "50 %" or "2:4"."""
        return ratio_title(self.text)


def ratio_title(text: str) -> str:
    """A ratio of a cell as shown; that of a dense model is empty and stays so."""
    return text if ":" in text or not text else f"{float(text):.0%}".replace("%", " %")


def parse_ratio(text: str) -> Ratio:
    """A share of zeros, or the name of a pattern that has one.

    Raises:
        ValueError: neither; a share is more than 0 and less than 1.
    """
    if text in PRUNING_PATTERNS.names() and (fixed := PRUNING_PATTERNS.get(text).ratio) is not None:
        return Ratio(text, {"pattern": text, "ratio": fixed})
    share = float(text)
    if not 0 < share < 1:
        raise ValueError(f"{text} is not between 0 and 1")
    return Ratio(f"{share:g}", {"pattern": "unstructured", "ratio": share})
