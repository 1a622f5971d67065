"""The search space: which adapters and which widths are elastic, and the values that each group may take.

Stored as `search_space.json`. A template names modules of one transformer layer that share a rank, or those that
produce and consume one width; it is expanded over all layers, layer-major. Value lists descend and start at the full
size, so the first choice of every group is the maximal sub-network, and a smaller value keeps a prefix: of a rank r
A[:r, :] and B[:, :r], of a width w the first w rows of what produces it and the first w columns of what consumes it
(Shears, section 3.2; LoNAS, 3.1). A search may add a share of zeros and a number format for every layer (`mixed`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import pydantic

from shearling.errors import DocumentInvalid, UsageError
from shearling.model.narrow_layers import Cut
from shearling.strict_json import Document, read_document

SEARCH_SPACE_FILE = "search_space.json"
SEARCH_SPACE_SCHEMA = "shearling.search_space/1"

Choice = Mapping[str, int]
"""Group id -> chosen value, one for every group of the space."""

Kind = Literal["rank", "width", "sparsity", "format"]

SPARSITY_GROUP, FORMAT_GROUP = "sparsity", "format"
"""Names of the groups that `SearchSpace.mixed` adds."""


class GridSpec(Document):
    """The integers that the weights are trained on; see `shearling.elastic.weight_grid`."""

    bits: Literal[4, 8]


class AdapterSpec(Document):
    """The super-adapter that the space cuts from.

    Attributes:
        r_max: rank of every stored adapter.
        alpha: `lora_alpha`.
        scaling: alpha / r_max for every rank (Shears), or alpha over the active rank.
        dropout: on the adapter's input while training; 0 where training is masked.
        masked_training: the update was multiplied by the sparsity mask while training (SparsePEFT, SQFT section 3).
        target_modules: last path component of every adapted module.
        grid: None where weights are trained as floating-point numbers.
    """

    r_max: int = pydantic.Field(ge=1)
    alpha: float = pydantic.Field(gt=0)
    dropout: float = pydantic.Field(ge=0, lt=1)
    scaling: Literal["alpha_over_r_max", "alpha_over_rank"] = "alpha_over_r_max"
    masked_training: bool
    target_modules: tuple[str, ...] = pydantic.Field(min_length=1)
    grid: GridSpec | None = None


class RankTemplate(Document):
    """Modules of one layer that share one rank."""

    kind: Literal["rank"] = "rank"
    name: str = pydantic.Field(pattern="^[A-Za-z0-9_]+$")
    modules: tuple[str, ...] = pydantic.Field(min_length=1)
    values: tuple[int, ...] = pydantic.Field(min_length=1)

    @pydantic.field_validator("values")
    @classmethod
    def _descending(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        _check_descending(values)
        return values

    def values_of(self, _position: int) -> tuple[int, ...]:
        """The allowed ranks, the same in every layer."""
        return self.values


class WidthTemplate(Document):
    """Modules of one layer between which one width stands.

    Attributes:
        producers: as wide at the output as `consumers` are at the input.
        grouped: key and value projections with fewer heads; their output is the width divided by `group`.
        consumers: read the width.
        head_dim: channels of a head, which stay together; 1 where there are no heads.
        group: query heads that share a key-value head.
        values: allowed widths, one list for all layers or one for each.
    """

    kind: Literal["width"] = "width"
    name: str = pydantic.Field(pattern="^[A-Za-z0-9_]+$")
    producers: tuple[str, ...] = pydantic.Field(min_length=1)
    grouped: tuple[str, ...] = ()
    consumers: tuple[str, ...] = pydantic.Field(min_length=1)
    head_dim: int = pydantic.Field(1, ge=1)
    group: int = pydantic.Field(1, ge=1)
    values: tuple[int, ...] | tuple[tuple[int, ...], ...] = pydantic.Field(min_length=1)

    @pydantic.model_validator(mode="after")
    def _whole_heads(self) -> WidthTemplate:
        unit = self.head_dim * self.group
        for values in self.lists:
            _check_descending(values)
            odd = [value for value in values if value % unit]
            if odd:
                raise ValueError(
                    f"width {odd[0]} of {self.name!r} is not a multiple of {unit}, the heads that "
                    "share one key-value head"
                )
        return self

    @property
    def lists(self) -> tuple[tuple[int, ...], ...]:
        """Every list of values; one where all layers share it."""
        return tuple(item for item in self.values if isinstance(item, tuple)) or (
            tuple(item for item in self.values if isinstance(item, int)),
        )

    def values_of(self, position: int) -> tuple[int, ...]:
        """The allowed widths of the layer at this position."""
        return self.lists[position if len(self.lists) > 1 else 0]


class SparsityTemplate(Document):
    """All pruned modules of one layer, which have one share of zeros.

    Attributes:
        values: of each layer the shares it may have, percent, ascending: the one that it was trained at comes first.
    """

    kind: Literal["sparsity"] = "sparsity"
    name: Literal["sparsity"] = "sparsity"
    modules: tuple[str, ...] = pydantic.Field(min_length=1)
    values: tuple[tuple[int, ...], ...] = pydantic.Field(min_length=1)

    @pydantic.field_validator("values")
    @classmethod
    def _ascending(cls, values: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
        for shares in values:
            if not shares or not all(0 <= share < 100 for share in shares):
                raise ValueError("shares of zeros must be 0 to 99 percent")
            if any(left >= right for left, right in itertools.pairwise(shares)):
                raise ValueError("shares of zeros must ascend strictly")
        return values

    def values_of(self, position: int) -> tuple[int, ...]:
        """The allowed shares of the layer at this position."""
        return self.values[position]


class FormatTemplate(Document):
    """All linear modules of one layer, which are stored in one number format; values are bits."""

    kind: Literal["format"] = "format"
    name: Literal["format"] = "format"
    modules: tuple[str, ...] = pydantic.Field(min_length=1)
    values: tuple[Literal[4, 8], ...] = pydantic.Field(min_length=1)

    @pydantic.field_validator("values")
    @classmethod
    def _descending(cls, values: tuple[Literal[4, 8], ...]) -> tuple[Literal[4, 8], ...]:
        _check_descending(values)
        return values

    def values_of(self, _position: int) -> tuple[int, ...]:
        """The allowed bits, the same in every layer."""
        return self.values


Template = Annotated[
    RankTemplate | WidthTemplate | SparsityTemplate | FormatTemplate, pydantic.Field(discriminator="kind")
]


def _check_descending(values: tuple[int, ...]) -> None:
    if any(value < 1 for value in values):
        raise ValueError("values must be at least 1")
    if any(left <= right for left, right in itertools.pairwise(values)):
        raise ValueError("values must be strictly descending")


@dataclass(frozen=True)
class Group:
    """One decision of the search.

    Attributes:
        id: such as `layers.3.qkv`.
        modules: absolute paths of the modules that share the rank, or that produce the width.
        values: allowed values, the dearest first: descending, and ascending shares of zeros.
        grouped: absolute paths of what is as wide as the value divided by `group`.
        consumers: absolute paths of what reads the width.
        head_dim: see `WidthTemplate`.
        group: see `WidthTemplate`.
    """

    id: str
    kind: Kind
    modules: tuple[str, ...]
    values: tuple[int, ...]
    grouped: tuple[str, ...] = ()
    consumers: tuple[str, ...] = ()
    head_dim: int = 1
    group: int = 1


class SearchSpace(Document):
    """The content of `search_space.json`.

    Attributes:
        layers_path: where the transformer layers are, such as `model.layers`.
        layers: "all", or the indices of the layers that carry adapters.
    """

    schema_: Literal["shearling.search_space/1"] = pydantic.Field("shearling.search_space/1", alias="schema")
    model_type: str
    num_layers: int = pydantic.Field(ge=1)
    layers_path: str
    adapter: AdapterSpec
    templates: tuple[Template, ...] = pydantic.Field(min_length=1)
    layers: Literal["all"] | tuple[int, ...] = "all"
    group_id: Literal["layers.{layer}.{name}"] = "layers.{layer}.{name}"
    order: Literal["layer-major"] = "layer-major"

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> SearchSpace:
        names = [template.name for template in self.templates]
        if len(set(names)) != len(names):
            raise ValueError("two templates have the same name")
        for what, modules in self._exclusive():
            if len(set(modules)) != len(modules):
                raise ValueError(f"a module is in more than one {what} group")
        for template in self.templates:
            if isinstance(template, RankTemplate) and template.values[0] != self.adapter.r_max:
                raise ValueError(
                    f"values of {template.name!r} must start at r_max {self.adapter.r_max}, not {template.values[0]}"
                )
            if isinstance(template, SparsityTemplate) and len(template.values) != self._depth:
                raise ValueError(f"{len(template.values)} lists of shares of zeros for {self._depth} layers")
            if isinstance(template, WidthTemplate) and len(template.lists) not in (1, self._depth):
                raise ValueError(
                    f"{template.name!r} has {len(template.lists)} lists of values for {self._depth} layers"
                )
        if self.layers != "all" and (
            sorted(set(self.layers)) != list(self.layers)
            or not all(0 <= layer < self.num_layers for layer in self.layers)
        ):
            raise ValueError(f"layers must ascend within 0..{self.num_layers - 1}")
        return self

    def _exclusive(self) -> tuple[tuple[str, list[str]], ...]:
        ranks = [
            module for template in self.templates if isinstance(template, RankTemplate) for module in template.modules
        ]
        widths = [template for template in self.templates if isinstance(template, WidthTemplate)]
        produced = [module for template in widths for module in (*template.producers, *template.grouped)]
        consumed = [module for template in widths for module in template.consumers]
        return ("rank", ranks), ("width", produced), ("width", consumed)

    @property
    def _depth(self) -> int:
        return self.num_layers if self.layers == "all" else len(self.layers)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Every group, by layer, then in the order of the templates."""
        layers = range(self.num_layers) if self.layers == "all" else self.layers
        return tuple(
            self._expand(template, position, layer)
            for position, layer in enumerate(layers)
            for template in self.templates
        )

    def _expand(self, template: Template, position: int, layer: int) -> Group:
        def absolute(names: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(f"{self.layers_path}.{layer}.{name}" for name in names)

        group_id, values = f"layers.{layer}.{template.name}", template.values_of(position)
        if not isinstance(template, WidthTemplate):
            return Group(group_id, template.kind, absolute(template.modules), values)
        return Group(
            group_id,
            "width",
            absolute(template.producers),
            values,
            grouped=absolute(template.grouped),
            consumers=absolute(template.consumers),
            head_dim=template.head_dim,
            group=template.group,
        )

    @cached_property
    def width_groups(self) -> tuple[Group, ...]:
        """The groups that change the shape of the frozen model; empty for Shears, whose ranks alone are elastic."""
        return tuple(group for group in self.groups if group.kind == "width")

    @cached_property
    def mixed_groups(self) -> tuple[Group, ...]:
        """The groups that `mixed` has added."""
        return tuple(group for group in self.groups if group.kind in ("sparsity", "format"))

    def mixed(
        self, modules: tuple[str, ...], *, percents: tuple[tuple[int, ...], ...] | None, bits: tuple[int, ...]
    ) -> SearchSpace:
        """The space with a share of zeros and a number format for each layer to choose.

        Args:
            modules: names of the linear modules inside a layer.
            percents: of each layer the shares that it may have, see `SparsityTemplate`; None leaves them as they are.
            bits: of the formats that it may have, descending; empty leaves them to the export.

        Raises:
            UsageError: a group of the recipe has one of the new names, or not every layer is searched.
        """
        taken = {template.name for template in self.templates} & {SPARSITY_GROUP, FORMAT_GROUP}
        if taken:
            raise UsageError(
                f"a group of the recipe is named {min(taken)!r}, as the choice of every layer would be",
                where="adapter.groups",
                remedy="Name it otherwise, and train again",
            )
        if self.layers != "all":
            raise UsageError("shares of zeros and formats are chosen in spaces of all layers", where=SEARCH_SPACE_FILE)
        added: list[dict[str, object]] = []
        if percents is not None:
            added.append({"kind": "sparsity", "modules": modules, "values": percents})
        if bits:
            added.append({"kind": "format", "modules": modules, "values": bits})
        return SearchSpace.model_validate(
            {**self.model_dump(by_alias=True), "templates": (*self.model_dump()["templates"], *added)}
        )

    def of_every_rank(self) -> SearchSpace:
        """The space in which a group that has several ranks may take any from the largest to 1."""
        every = {"values": tuple(range(self.adapter.r_max, 0, -1))}
        templates = tuple(
            template.model_copy(update=every)
            if isinstance(template, RankTemplate) and len(template.values) > 1
            else template
            for template in self.templates
        )
        return SearchSpace.model_validate({**self.model_dump(by_alias=True), "templates": templates})

    @property
    def size(self) -> int:
        """Number of sub-networks."""
        return math.prod(len(group.values) for group in self.groups)

    @property
    def scaling(self) -> float:
        """lora_alpha / r_max, that of the largest rank."""
        return self.adapter.alpha / self.adapter.r_max

    @property
    def scales_by_rank(self) -> bool:
        """Whether a smaller rank has a larger scaling, lora_alpha / rank."""
        return self.adapter.scaling == "alpha_over_rank"

    def maximal(self) -> dict[str, int]:
        """The choice that keeps everything: the super-adapter itself."""
        return {group.id: group.values[0] for group in self.groups}

    def minimal(self) -> dict[str, int]:
        """The smallest value of every group."""
        return {group.id: group.values[-1] for group in self.groups}

    def heuristic(self) -> dict[str, int]:
        """The middle of every list, index floor((n - 1) / 2) (as the released code of Shears does)."""
        return {group.id: group.values[(len(group.values) - 1) // 2] for group in self.groups}

    def encode(self, choice: Choice) -> tuple[int, ...]:
        """The choice as one index per group, in group order.

        Raises:
            DocumentInvalid: a group is missing or unknown, or a value is not in its list.
        """
        self.check(choice)
        return tuple(group.values.index(choice[group.id]) for group in self.groups)

    def decode(self, indices: Sequence[int]) -> dict[str, int]:
        """Inverse of `encode`."""
        if len(indices) != len(self.groups):
            raise DocumentInvalid(f"{len(indices)} indices for {len(self.groups)} groups", where=SEARCH_SPACE_FILE)
        for group, index in zip(self.groups, indices, strict=True):
            if not 0 <= index < len(group.values):
                raise DocumentInvalid(f"index {index} is outside 0..{len(group.values) - 1}", where=group.id)
        return {group.id: group.values[index] for group, index in zip(self.groups, indices, strict=True)}

    def check(self, choice: Choice) -> None:
        """Check that `choice` has exactly one allowed value for every group.

        Raises:
            DocumentInvalid: names the group and lists what is allowed.
        """
        known = {group.id: group for group in self.groups}
        missing, unknown = sorted(known.keys() - choice.keys()), sorted(choice.keys() - known.keys())
        if missing:
            raise DocumentInvalid(f"no value for {len(missing)} groups, the first is {missing[0]}", where="choice")
        if unknown:
            raise DocumentInvalid(
                f"unknown group {unknown[0]}",
                where="choice",
                remedy=f"Groups are {self.groups[0].id} to {self.groups[-1].id}",
            )
        for group_id, value in choice.items():
            group = known[group_id]
            if type(value) is not int or value not in group.values:
                unit = group.head_dim * group.group
                reason = (
                    f", it is not a multiple of {unit}, the heads that share one key-value head"
                    if type(value) is int and value % unit
                    else ""
                )
                raise DocumentInvalid(
                    f"{value!r} is not allowed{reason}",
                    where=group_id,
                    remedy=f"Allowed: {', '.join(map(str, group.values))}",
                )

    def ranks(self, choice: Choice) -> dict[str, int]:
        """The rank of every adapted module.

        Raises:
            DocumentInvalid: see `check`.
        """
        return self._of_kind("rank", choice)

    def percents(self, choice: Choice) -> dict[str, int]:
        """The share of zeros of every module whose layer has a choice of it, percent.

        Raises:
            DocumentInvalid: see `check`.
        """
        return self._of_kind("sparsity", choice)

    def bits(self, choice: Choice) -> dict[str, int]:
        """The bits of every module whose layer has a choice of its number format.

        Raises:
            DocumentInvalid: see `check`.
        """
        return self._of_kind("format", choice)

    def _of_kind(self, kind: Kind, choice: Choice) -> dict[str, int]:
        self.check(choice)
        return {module: choice[group.id] for group in self.groups if group.kind == kind for module in group.modules}

    def cuts(self, choice: Choice) -> dict[str, Cut]:
        """The active sizes of every linear layer that a width group touches.

        Raises:
            DocumentInvalid: see `check`.
        """
        self.check(choice)
        out_features = self.widths(choice)
        in_features: dict[str, int] = {}
        for group in self.width_groups:
            in_features |= dict.fromkeys(group.consumers, choice[group.id])
        paths = dict.fromkeys((*out_features, *in_features))
        return {path: Cut(out_features.get(path), in_features.get(path)) for path in paths}

    def widths(self, choice: Choice) -> dict[str, int]:
        """The output width of every module that a width group shortens.

        Raises:
            DocumentInvalid: see `check`.
        """
        self.check(choice)
        widths: dict[str, int] = {}
        for group in self.width_groups:
            widths |= dict.fromkeys(group.modules, choice[group.id]) | dict.fromkeys(
                group.grouped, choice[group.id] // group.group
            )
        return widths


def rounded_count(count: int) -> str:
    """A number of sub-networks for people: all digits of a small one, two of a large one, which may be beyond what a
    float holds.
    """
    return str(count) if count < 10_000 else f"{Decimal(count):.1e}"


def read_search_space(path: Path) -> SearchSpace:
    """Read and validate `search_space.json`."""
    return read_document(path, SearchSpace, schema=SEARCH_SPACE_SCHEMA)
