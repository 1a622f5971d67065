"""Types of the options of benchmarks: several values with commas between them, and counts."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import TypeVar

Value = TypeVar("Value")


def listed(parse: Callable[[str], Value]) -> Callable[[str], tuple[Value, ...]]:
    """A type of argparse: each part, as `parse` reads it; its ValueError is what the user is told."""

    def parse_list(text: str) -> tuple[Value, ...]:
        try:
            return tuple(parse(part.strip()) for part in text.split(","))
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse_list


def names_of(known: Mapping[str, object]) -> Callable[[str], tuple[str, ...]]:
    """A type of argparse: names of what there is."""

    def known_name(text: str) -> str:
        names = tuple(known)
        if text not in names:
            raise ValueError(f"{text} is none of {', '.join(names)}")
        return text

    return listed(known_name)


def positive(text: str) -> int:
    """A type of argparse: a whole number above 0."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number
