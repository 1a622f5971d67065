"""An option of a command whose values are the names of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import click

from shearling.registry.registry import Registry


class NameOption(click.ParamType[str]):
    """The type of such an option, for `typer.Option(click_type=...)`.

    The table is read when the help is shown or the option is given, not when the command is imported: an entry that
    another package adds may be broken, and is then reported like any other fault.

    Args:
        names: all of them, for the help.
        check: raises a `UsageError` for a value that is none of them, given the option's name; None takes any.
        several: whether the option takes a list, separated by commas.
    """

    name = "name"

    def __init__(
        self,
        names: Callable[[], Iterable[str]],
        check: Callable[[str, str | None], object] | None = None,
        *,
        several: bool = False,
    ) -> None:
        self._names = names
        self._check = check
        self._several = several

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """The names, as `--help` shows them."""
        return f"[{'|'.join(self._names())}]{',...' if self._several else ''}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The name itself."""
        if self._check is not None:
            self._check(value, param.opts[0] if param else None)
        return value


def member_of(registry: Registry[Any], *, also: tuple[str, ...] = ()) -> NameOption:
    """The type of an option that names a member of a table.

    Args:
        registry: the table.
        also: further words that the option takes, such as `auto`; the help shows them first.
    """

    def check(value: str, option: str | None) -> None:
        if value not in also:
            registry.get(value, where=option)

    return NameOption(lambda: (*also, *registry.names()), check)
