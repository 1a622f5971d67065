"""Tables of what a command can be asked for by name, open to other packages.

An entry is a plain record: a name, a line for `--help` and the documentation, attributes that the stages ask for, and
where its implementation is. The implementation is imported when it is first used, so that a table costs nothing to
read and may be read by packages that must not import the stage that the implementation lives in.

Another package adds an entry through an entry point whose group is the table's:

    [project.entry-points."shearling.pruning_methods"]
    random = "my_package.random_pruning:ENTRY"
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import pydantic
import pydantic_core

from shearling.errors import EnvironmentFault, UsageError


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What every table knows of a member; each table has a subclass with the attributes that its stage asks for.

    Attributes:
        name: as users write it, in a recipe or behind an option.
        summary: one line, for `--help` and the tables of the documentation.
        implementation: `package.module:attribute`, imported when it is first used; or the object itself. Of members
            with several, a mapping from what each is for.
    """

    name: str
    summary: str
    implementation: Any


@dataclass(frozen=True, kw_only=True)
class SingleEntry(Entry):
    """A member with one implementation."""

    def load(self) -> Any:
        """The implementation, imported."""
        return load_implementation(self.implementation)


EntryT = TypeVar("EntryT", bound=Entry)


class Registry(Generic[EntryT]):
    """One table.

    Args:
        noun: what a member is, for error texts: `pruning method`.
        group: the entry-point group through which other packages add members: `shearling.pruning_methods`.
        entry_type: the class of its records.
        entries: the members that this project has, in the order in which they are listed.
    """

    def __init__(self, *, noun: str, group: str, entry_type: type[EntryT], entries: Iterable[EntryT]) -> None:
        self.noun = noun
        self.group = group
        self._entry_type = entry_type
        self._entries: dict[str, EntryT] = {}
        self._waiting: list[importlib.metadata.EntryPoint] | None = None
        for entry in entries:
            self.register(entry)

    def register(self, entry: EntryT) -> EntryT:
        """Add a member.

        Raises:
            EnvironmentFault: the name is taken, or the record is of another class.
        """
        if not isinstance(entry, self._entry_type):
            raise EnvironmentFault(
                f"a {self.noun} is described by {self._entry_type.__name__}, found {type(entry).__name__}",
                where=self.group,
                remedy="See docs/extending.md",
            )
        if entry.name in self._entries:
            raise EnvironmentFault(
                f"there are two of the {self.noun} {entry.name!r}",
                where=self.group,
                remedy="Give one of them another name, or uninstall its package",
            )
        self._entries[entry.name] = entry
        return entry

    def names(self) -> tuple[str, ...]:
        """Every name, this project's first."""
        self._add_installed()
        return tuple(self._entries)

    def get(self, name: str, *, where: str | None = None) -> EntryT:
        """The member of this name.

        Args:
            name: as the user wrote it.
            where: the option or the field that it came from, for the message.

        Raises:
            UsageError: there is none; names all there are, and the nearest.
        """
        # A module that is named by an entry point may ask for a member of this project while it is imported.
        if name not in self._entries:
            self._add_installed()
        if name not in self._entries:
            near = difflib.get_close_matches(name, self._entries, n=1)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise UsageError(
                f"there is no {self.noun} {name!r}", where=where, remedy=f"{hint}There are: {', '.join(self._entries)}"
            )
        return self._entries[name]

    def __iter__(self) -> Iterator[EntryT]:
        """Every member, this project's first."""
        self._add_installed()
        return iter(tuple(self._entries.values()))

    def _add_installed(self) -> None:
        # Once, and not at import: what an entry point names imports this module itself.
        if self._waiting is None:
            self._waiting = sorted(importlib.metadata.entry_points(group=self.group), key=lambda point: point.name)
        while self._waiting:
            point = self._waiting[0]
            try:
                entry = point.load()
            # A module of somebody else's may fail in any way.
            except Exception as error:
                raise EnvironmentFault(
                    f"another package's {self.noun} {point.name!r} cannot be imported: {type(error).__name__}: {error}",
                    where=point.value,
                    remedy="Mend or uninstall that package",
                ) from error
            self.register(entry)
            self._waiting.pop(0)


def load_implementation(implementation: Any) -> Any:
    """What `package.module:attribute` names, imported; anything but a string is returned as it is.

    Raises:
        EnvironmentFault: there is no such module or attribute, or a package that the module needs is not installed.
    """
    if not isinstance(implementation, str):
        return implementation
    module, _, attribute = implementation.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise EnvironmentFault(
            f"an implementation cannot be imported: {error}",
            where=implementation,
            remedy="Install what it needs, or mend the record that names it",
        ) from error


@dataclass(frozen=True)
class NameIn:
    """What makes a field of a recipe the name of a member: `method: Annotated[str, NameIn(PRUNING_METHODS)]`.

    The field's JSON schema lists the members.
    """

    registry: Registry[Any]

    def __get_pydantic_core_schema__(
        self, source: type[str], handler: pydantic.GetCoreSchemaHandler
    ) -> pydantic_core.CoreSchema:
        """The string, then a look into the table."""
        return pydantic_core.core_schema.no_info_after_validator_function(self._known, handler(source))

    def __get_pydantic_json_schema__(
        self, core_schema: pydantic_core.CoreSchema, handler: pydantic.GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """The members as an enumeration."""
        return {**handler(core_schema), "enum": list(self.registry.names())}

    def _known(self, value: str) -> str:
        try:
            return self.registry.get(value).name
        except UsageError as error:
            raise ValueError(f"{error.message} ({error.remedy})") from None
