"""A whole recipe: one TOML file that says what a run is made of, validated against a published schema.

`recipes/recipe.schema.json` is generated from these classes (`shearling schema`), so an editor can complete and check a
recipe while it is written.
"""

from __future__ import annotations

import difflib
import tomllib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import pydantic

from shearling.errors import ArtefactMissing, RecipeInvalid
from shearling.recipe.adapter import AdapterSection
from shearling.recipe.model import ModelSection
from shearling.recipe.quantization import QuantizationSection
from shearling.recipe.search import SearchSection
from shearling.recipe.section import Section, Seed
from shearling.recipe.sparsity import SparsitySection
from shearling.recipe.task import TaskSection
from shearling.recipe.training import TrainSection
from shearling.recipe.variants import VariantsSection
from shearling.recipe.width import WidthSection
from shearling.registry.pruning_methods import PRUNING_METHODS
from shearling.registry.pruning_patterns import PRUNING_PATTERNS

RECIPE_SCHEMA = "shearling.recipe/1"

AnySection = TypeVar("AnySection", bound=Section)


class Recipe(Section):
    """A whole run.

    Without [sparsity] the base stays dense; without [adapter] and [train] the run ends with the pruned model.
    """

    schema_: Literal["shearling.recipe/1"] = pydantic.Field(alias="schema")
    name: str
    seed: Seed = 0
    model: ModelSection
    task: TaskSection
    data: tuple[TaskSection, ...] = pydantic.Field((), description="more tasks, learnt beside that of [task]")
    sparsity: SparsitySection | None = None
    variants: VariantsSection | None = None
    quantization: QuantizationSection | None = None
    adapter: AdapterSection | None = None
    width: WidthSection | None = None
    train: TrainSection | None = None
    search: SearchSection = SearchSection()

    @pydantic.model_validator(mode="before")
    @classmethod
    def _widths_as_published(cls, data: Any) -> Any:
        """Elastic widths are drawn and scaled as the papers do: what is better for ranks was not measured for them."""
        if not isinstance(data, dict) or data.get("width") is None:
            return data
        return _with_papers(data, "adapter", "train")

    @pydantic.model_validator(mode="after")
    def _classifier(self) -> Recipe:
        if self.model.head == "classifier" and self.task.choices is None:
            raise ValueError("a classifier needs the task's choices: they are its classes")
        if self.model.head == "classifier" and self.sparsity is not None and self.sparsity.allocation == "searched":
            raise ValueError(
                'sparsity.allocation = "searched" needs a language model: a classifier has no loss before it is '
                'trained. Set it to "uniform" or "owl"'
            )
        if self.model.head == "classifier" and self.adapter is None:
            raise ValueError("a classifier needs [adapter] and [train]: its head is new")
        if self.model.head == "classifier" and self.model.adaptation is not None:
            raise ValueError(
                "[model.adaptation] needs a language model: a classifier learns its head with the adapters"
            )
        return self

    @property
    def tasks(self) -> tuple[TaskSection, ...]:
        """What is learnt: the task that is measured and searched for, and those of [[data]]."""
        return (self.task, *self.data)

    @pydantic.model_validator(mode="after")
    def _tasks(self) -> Recipe:
        names = [task.name for task in self.tasks]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two tasks are named {twice!r}: give each its own name")
        if self.data and self.adapter is None:
            raise ValueError("[[data]] needs [adapter] and [train]: they learn it")
        if self.model.head == "classifier" and self.data:
            raise ValueError("a classifier learns one task, whose choices are its classes: leave out [[data]]")
        if self.model.head == "classifier" and self.train is not None and self.train.pack_tokens is not None:
            raise ValueError("a classifier reads a row at a time: leave out train.pack_tokens")
        return self

    @property
    def leaves_tokens_unlabelled(self) -> bool:
        """Whether there are tokens of a prompt for a teacher to keep the language of."""
        return any(task.leaves_tokens_unlabelled for task in self.tasks)

    @pydantic.model_validator(mode="after")
    def _teacher(self) -> Recipe:
        teacher = None if self.train is None else self.train.teacher
        if teacher is not None and self.model.head == "classifier":
            raise ValueError(
                "a classifier has no language to keep, and learns its classes from labels: leave out [train.teacher]"
            )
        if teacher is None or teacher.answer or teacher.hidden or self.leaves_tokens_unlabelled:
            return self
        raise ValueError(
            "[train.teacher] teaches nothing: it has a weight at tokens without a label alone, and every token has "
            "one; set train_on_prompt = false in [task], or give 'answer' or 'hidden' a weight"
        )

    @pydantic.model_validator(mode="after")
    def _variants(self) -> Recipe:
        if self.variants is None:
            return self
        if self.sparsity is None or self.adapter is None:
            raise ValueError("[variants] needs [sparsity] and [adapter]: a search chooses among them")
        if PRUNING_PATTERNS.get(self.sparsity.pattern).ratio is not None:
            raise ValueError(f"[variants] has other ratios, and the pattern {self.sparsity.pattern} has one")
        if self.quantization is not None:
            raise ValueError("[variants] and [quantization] exclude each other: integers are trained at one ratio")
        method, reconstruction = PRUNING_METHODS.get(self.sparsity.method), self.sparsity.reconstruction
        if not method.keeps_zeros:
            raise ValueError(f"[variants] keeps what was pruned, and {method.name} brings weights back: take another")
        if reconstruction is not None and reconstruction.swaps:
            raise ValueError("[variants] keeps what was pruned, and swaps bring weights back: set swaps = 0")
        if self.sparsity.allocation == "uniform" and self.variants.ratios[0] <= self.sparsity.ratio:
            raise ValueError(
                f"no layer can take {self.variants.ratios[0]:g}: variants have more zeros than the ratio "
                f"{self.sparsity.ratio:g} of [sparsity], which training sees"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if (self.adapter is None) != (self.train is None):
            raise ValueError("[adapter] and [train] belong together")
        if self.model.adaptation is not None and self.adapter is None:
            raise ValueError("[model.adaptation] needs [adapter] and [train]: they say how")
        if self.width is not None and self.adapter is None:
            raise ValueError("[width] needs [adapter] and [train]: the adapters repair what a cut takes away")
        if self.adapter is None and self.sparsity is None:
            raise ValueError("nothing to do: give [sparsity], or [adapter] with [train]")
        if self.adapter is not None and self.adapter.masked and self.sparsity is None:
            raise ValueError("masked training needs [sparsity]; for a dense base set masked = false")
        return self

    @pydantic.model_validator(mode="after")
    def _grid(self) -> Recipe:
        if self.quantization is None:
            return self
        if self.adapter is None:
            raise ValueError("[quantization] needs [adapter] and [train]; python -m export rounds a finished model")
        if self.width is not None:
            raise ValueError("[quantization] and [width] exclude each other: a cut width would cut groups of the grid")
        if self.train is not None and self.train.memory == "lean":
            raise ValueError('[quantization] trains in float32, with all weights in memory: leave memory = "lean" out')
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
        data = tomllib.loads(path.read_text(encoding="utf-8-sig"))
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


def read_stored_section(kind: type[AnySection], stored: Any) -> AnySection:
    """A section that a manifest keeps, with what it meant when it was stored.

    A key that it was made before has the default that there was then: that of today, or where the papers' value was
    the default at first, that one.

    Args:
        kind: what section it is.
        stored: from `section_as_json`.

    Raises:
        pydantic.ValidationError: no section can be that.
    """
    return kind.model_validate({**kind.papers, **stored} if isinstance(stored, dict) else stored, strict=False)


def stored_section(kind: type[Section], stored: Any) -> Any:
    """A section that a manifest keeps, as it would be stored today; see `read_stored_section`.

    Args:
        kind: what section it is.
        stored: from `section_as_json`; what no section can be is given back as it is.
    """
    try:
        return section_as_json(read_stored_section(kind, stored))
    except pydantic.ValidationError:
        return stored


def stored_recipe(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Sections of a recipe that were kept, with what they leave to defaults that have changed since.

    Args:
        sections: by their names, as in TOML or as JSON.
    """
    return _with_papers(sections, *sections)


def _with_papers(sections: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """The sections, those of these names with the papers' value of each key that they leave out."""
    filled = dict(sections)
    for name in names:
        field, section = Recipe.model_fields.get(name), sections.get(name)
        kind = None if field is None else _section_of(field.annotation)
        if kind is None:
            continue
        if isinstance(section, list | tuple):
            filled[name] = [{**kind.papers, **item} if isinstance(item, dict) else item for item in section]
        elif isinstance(section, dict):
            filled[name] = {**kind.papers, **section}
    return filled


def _without_directories(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_directories(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_without_directories(item) for item in value]
    return value.name if isinstance(value, Path) else value


def _anchor_paths(data: dict[str, Any], anchor: Path) -> None:
    for key, value in data.items():
        for table in value if isinstance(value, list) else [value]:
            if isinstance(table, dict):
                if isinstance(table.get("path"), str):
                    table["path"] = str(anchor / table["path"])
                name = table.get("name")
                if key == "dataset" and isinstance(name, str) and (anchor / name).is_dir():
                    table["name"] = anchor / name
                _anchor_paths(table, anchor)


def _describe(error: pydantic.ValidationError) -> str:
    parts = []
    for item in _told_errors(error):
        field = ".".join(str(part) for part in item["loc"]) or "recipe"
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(item["loc"][-1]), _known_keys(item["loc"][:-1]), n=1)
            parts.append(f"{field}: unknown key{f', did you mean {near[0]!r}?' if near else ''}")
        elif item["type"] == "missing":
            parts.append(f"{field}: missing")
        else:
            parts.append(f"{field}: {item['msg'].removeprefix('Value error, ')}")
    return "; ".join(parts)


def _told_errors(error: pydantic.ValidationError) -> list[dict[str, Any]]:
    """Without those that follow from others, and of the forms that a value may have, the one that it is nearest to."""
    found = [item for item in error.errors(include_url=False) if item["type"] != "default_factory_not_called"]
    forms: dict[tuple[int | str, ...], Counter[str]] = {}
    for item in found:
        place, form = _form(item["loc"])
        forms.setdefault(place, Counter())[form] += 1
    nearest = {place: min(counts, key=counts.__getitem__) for place, counts in forms.items()}
    near = [item for item in found if nearest[(split := _form(item["loc"]))[0]] == split[1]]
    told: list[dict[str, Any]] = [
        {**item, "loc": tuple(part for part in item["loc"] if not _is_form(part))} for item in near
    ]
    inside = {item["loc"][:length] for item in told for length in range(len(item["loc"]))}
    return [item for item in told if not (item["type"] == "too_short" and item["loc"] in inside)]


def _form(location: tuple[int | str, ...]) -> tuple[tuple[int | str, ...], str]:
    """Where a value that may have several forms stands, and which of them an error is of; "" where it is of none."""
    place = next((index for index, part in enumerate(location) if _is_form(part)), None)
    return (location, "") if place is None else (location[:place], str(location[place]))


def _is_form(part: int | str) -> bool:
    """Whether it is the name of a type, which pydantic puts between keys."""
    return isinstance(part, str) and "[" in part


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


def _section_of(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for part in getattr(annotation, "__args__", ()) if (found := _section_of(part))), None)
