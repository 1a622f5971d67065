"""The search space: which adapters are elastic, and the ranks that each group may take.

Stored as `search_space.json`. A template names modules of one decoder layer that share a rank; it is expanded over all
layers, layer-major. Value lists descend and start at the full rank, so the first choice of every group is the maximal
sub-network, and a smaller rank r keeps a prefix: A[:r, :] and B[:, :r] (Shears, section 3.2; LoNAS, section 3.1).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import pydantic

from shearling.errors import DocumentInvalid
from shearling.strict_json import Document, read_document

SEARCH_SPACE_FILE = "search_space.json"
SEARCH_SPACE_SCHEMA = "shearling.search_space/1"

Choice = Mapping[str, int]
"""Group id -> chosen value, one for every group of the space."""


class AdapterSpec(Document):
    """The super-adapter that the space cuts from.

    Attributes:
        r_max: rank of every stored adapter.
        alpha: `lora_alpha`; the scaling is alpha / r_max for every rank (Shears keeps it constant).
        dropout: on the adapter's input while training; 0 where training is masked.
        masked_training: the update was multiplied by the sparsity mask while training (SparsePEFT, SQFT section 3).
        target_modules: last path component of every adapted module.
    """

    r_max: int = pydantic.Field(ge=1)
    alpha: float = pydantic.Field(gt=0)
    dropout: float = pydantic.Field(ge=0, lt=1)
    scaling: Literal["alpha_over_r_max"] = "alpha_over_r_max"
    masked_training: bool
    target_modules: tuple[str, ...] = pydantic.Field(min_length=1)


class RankTemplate(Document):
    """Modules of one layer that share one rank."""

    kind: Literal["rank"] = "rank"
    name: str = pydantic.Field(pattern="^[A-Za-z0-9_]+$")
    modules: tuple[str, ...] = pydantic.Field(min_length=1)
    values: tuple[int, ...] = pydantic.Field(min_length=1)

    @pydantic.field_validator("values")
    @classmethod
    def _descending(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        if any(value < 1 for value in values):
            raise ValueError("values must be at least 1")
        if any(left <= right for left, right in itertools.pairwise(values)):
            raise ValueError("values must be strictly descending")
        return values


@dataclass(frozen=True)
class Group:
    """One decision of the search.

    Attributes:
        id: such as `layers.3.qkv`.
        modules: absolute paths of the modules that share the value.
        values: allowed values, descending.
    """

    id: str
    kind: Literal["rank"]
    modules: tuple[str, ...]
    values: tuple[int, ...]


class SearchSpace(Document):
    """The content of `search_space.json`.

    Attributes:
        layers_path: where the decoder layers are, such as `model.layers`.
        layers: "all", or the indices of the layers that carry adapters.
    """

    schema_: Literal["shearling.search_space/1"] = pydantic.Field("shearling.search_space/1", alias="schema")
    model_type: str
    num_layers: int = pydantic.Field(ge=1)
    layers_path: str
    adapter: AdapterSpec
    templates: tuple[RankTemplate, ...] = pydantic.Field(min_length=1)
    layers: Literal["all"] | tuple[int, ...] = "all"
    group_id: Literal["layers.{layer}.{name}"] = "layers.{layer}.{name}"
    order: Literal["layer-major"] = "layer-major"

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> SearchSpace:
        names = [template.name for template in self.templates]
        if len(set(names)) != len(names):
            raise ValueError("two templates have the same name")
        modules = [module for template in self.templates for module in template.modules]
        if len(set(modules)) != len(modules):
            raise ValueError("a module is in more than one rank group")
        for template in self.templates:
            if template.values[0] != self.adapter.r_max:
                raise ValueError(f"values of {template.name!r} must start at r_max {self.adapter.r_max}, not {template.values[0]}")
        if self.layers != "all" and (sorted(set(self.layers)) != list(self.layers) or not all(0 <= layer < self.num_layers for layer in self.layers)):
            raise ValueError(f"layers must ascend within 0..{self.num_layers - 1}")
        return self

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Every group, by layer, then in the order of the templates."""
        layers = range(self.num_layers) if self.layers == "all" else self.layers
        return tuple(
            Group(
                id=f"layers.{layer}.{template.name}",
                kind=template.kind,
                modules=tuple(f"{self.layers_path}.{layer}.{module}" for module in template.modules),
                values=template.values,
            )
            for layer in layers
            for template in self.templates
        )

    @property
    def size(self) -> int:
        """Number of sub-networks."""
        return math.prod(len(group.values) for group in self.groups)

    @property
    def scaling(self) -> float:
        """lora_alpha / r_max, the same for every rank."""
        return self.adapter.alpha / self.adapter.r_max

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
            raise DocumentInvalid(f"unknown group {unknown[0]}", where="choice", remedy=f"Groups are {self.groups[0].id} to {self.groups[-1].id}")
        for group_id, value in choice.items():
            if type(value) is not int or value not in known[group_id].values:
                raise DocumentInvalid(f"{value!r} is not allowed", where=group_id, remedy=f"Allowed: {', '.join(map(str, known[group_id].values))}")

    def ranks(self, choice: Choice) -> dict[str, int]:
        """The rank of every adapted module.

        Raises:
            DocumentInvalid: see `check`.
        """
        self.check(choice)
        return {module: choice[group.id] for group in self.groups for module in group.modules}


def read_search_space(path: Path) -> SearchSpace:
    """Read and validate `search_space.json`."""
    return read_document(path, SearchSpace, schema=SEARCH_SPACE_SCHEMA)
