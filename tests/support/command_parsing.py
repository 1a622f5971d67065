"""Whether a command line is one that a program accepts, without running it."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import typer.main


def parse_command(module: str, program: str, arguments: Sequence[str]) -> None:
    """Parse alone: a wrong option, a missing one or an unknown subcommand raises.

    Args:
        module: holds the typer application, `app`.
        program: its name in messages.
        arguments: what follows it.
    """
    parser = typer.main.get_command(importlib.import_module(module).app)
    context = parser.make_context(program, list(arguments), resilient_parsing=False)
    if hasattr(parser, "commands") and context._protected_args:
        name, subcommand, rest = parser.resolve_command(context, [*context._protected_args, *context.args])
        subcommand.make_context(name, rest, parent=context)
