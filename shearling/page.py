"""Pages for people: one file each, without scripts and outside resources, from a template beside who fills it."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def render_page(template: Path, **content: Any) -> str:
    """A template of Jinja, filled.

    Args:
        template: a file.
        content: by the name that the template knows; every text is escaped unless it is `markupsafe.Markup`.

    Raises:
        jinja2.UndefinedError: the template asks for what was not given.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template.read_text(encoding="utf-8")).render(**content)
