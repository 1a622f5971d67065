"""Finished cells of a table: a file each, so that an interrupted benchmark goes on with the cell where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pydantic

from shearling.errors import UsageError
from shearling.recipe.recipe import stored_recipe
from shearling.strict_json import write_document


class WantedCell(Protocol):
    """A cell of the table."""

    def recipe(self) -> dict[str, Any]:
        """What carries it out."""
        ...


class KeptCell(Protocol):
    """The content of its file."""

    @property
    def recipe(self) -> dict[str, Any]:
        """What was carried out."""
        ...


Wanted = TypeVar("Wanted", bound=WantedCell)


def cell_file(output: Path, name: str) -> Path:
    """Where a finished cell is kept."""
    return output / "cells" / f"{name}.json"


def cell_files(output: Path) -> list[Path]:
    """Of all finished cells, by name."""
    return sorted((output / "cells").glob("*.json"))


def keep_cell(output: Path, name: str, document: pydantic.BaseModel) -> None:
    """Write the file of a finished cell."""
    path = cell_file(output, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_document(path, document)


def unfinished_cells(
    cells: Mapping[str, Wanted], output: Path, read: Callable[[Path], KeptCell], *, options: str
) -> list[Wanted]:
    """The cells that have no file yet.

    Args:
        cells: by name.
        output: the directory of the benchmark.
        read: reads the file of one.
        options: that change a recipe, for the message.

    Raises:
        UsageError: see `check_same_recipe`.
        DocumentInvalid: one of them is malformed.
    """
    left = []
    for name, cell in cells.items():
        path = cell_file(output, name)
        if path.is_file():
            check_same_recipe(path, read(path), cell, options=options)
        else:
            left.append(cell)
    return left


def check_same_recipe(path: Path, kept: KeptCell, wanted: WantedCell, *, options: str) -> None:
    """Refuse a finished cell whose figures do not belong beside those that today's code would make.

    Args:
        path: of its file.
        kept: what is in it.
        wanted: the cell, as it would be carried out today.
        options: that change a recipe, for the message.

    Raises:
        UsageError: it was carried out by another recipe.
    """
    # An older cell may leave to the defaults of its time what is said today.
    if stored_recipe(kept.recipe) != stored_recipe(json.loads(json.dumps(wanted.recipe()))):
        raise UsageError(
            "this cell was made by another recipe",
            where=path,
            remedy=f"Choose another --output, repeat {options}, or remove the file to run the cell anew",
        )
