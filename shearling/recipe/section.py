"""Base of every section of a recipe, and what several of them name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence, Set
from types import UnionType
from typing import Annotated, Any, ClassVar, Union, get_args, get_origin

import pydantic

Seed = Annotated[int, pydantic.Field(ge=0, lt=2**32)]
"""NumPy's generators take no other."""


class Section(pydantic.BaseModel):
    """Base of every section: frozen, no unknown keys; TOML integers are accepted for floats.

    Attributes:
        papers: values of the papers that were defaults once, and are no more: what artefacts of that time mean by a
            key that they do not have.
    """

    papers: ClassVar[Mapping[str, Any]] = {}

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True)

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _as_it_is_written(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        """Refuse what pydantic would convert: text and truth values for numbers, and either of them for a truth value.

        Its own strict mode also refuses the lists that TOML has for tuples.
        """
        kinds = set(_kinds(cls.model_fields[str(info.field_name)].annotation))
        if kinds <= {bool, int, float, type(None)} and _is_converted(value, kinds):
            raise ValueError(f"{json.dumps(value)} is {'neither true nor false' if bool in kinds else 'no number'}")
        return value


def _kinds(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Annotated:
        yield from _kinds(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for part in get_args(annotation):
            yield from _kinds(part)
    else:
        yield annotation


def _is_converted(value: Any, kinds: Set[Any]) -> bool:
    if isinstance(value, bool):
        return bool not in kinds
    return isinstance(value, str) or (bool in kinds and isinstance(value, int | float))


class PackageAsset(Section):
    """A file inside a wheel of the package registry, pinned by digest."""

    wheel: str = pydantic.Field(pattern="^[A-Za-z0-9._-]+$", description="name of the distribution")
    version: str = pydantic.Field(pattern="^[A-Za-z0-9.+!_-]+$")
    sha256: str = pydantic.Field(pattern="^[0-9a-f]{64}$", description="of the wheel file")
    member: str = pydantic.Field(description="path inside the wheel")


def require_unique(names: Sequence[str]) -> None:
    """Refuse groups that could not be told apart.

    Raises:
        ValueError: two have the same name.
    """
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{names.count(name)} groups are named {name!r}")
