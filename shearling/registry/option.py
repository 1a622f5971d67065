"""What makes an option of a command take the names of a table: `typer.Option(click_type=MemberName(TABLE))`."""

from __future__ import annotations

from typing import Any

import click

from shearling.registry.registry import Registry


class MemberName(click.ParamType):  # type: ignore[type-arg] # generic in the stubs alone
    """A member's name; `--help` lists the members, and another word is refused with the nearest of them.

    Args:
        registry: read when help is shown or a name is given, not before.
    """

    name = "name"

    def __init__(self, registry: Registry[Any]) -> None:
        self._registry = registry

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """Every name, as a choice is shown."""
        return f"[{'|'.join(self._registry.names())}]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name as it is.

        Raises:
            UsageError: there is no such member.
        """
        return self._registry.get(value, where=param.opts[0] if param else None).name
