"""Texts inside Markdown."""

from __future__ import annotations

SIGNS = "\\`*_|<>[]"


def escape_markdown(text: str) -> str:
    """Paths, names and messages as they are, inside a table and out of it."""
    for sign in SIGNS:
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())
