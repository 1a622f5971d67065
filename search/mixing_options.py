"""The options that let layers choose their zeros and their formats, of every command that needs the same space."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

from shearling.errors import UsageError

if TYPE_CHECKING:
    from shearling.elastic.mixture import LayerFormat

RatiosOption = Annotated[
    str | None,
    typer.Option(
        help="Shares of zeros that each layer chooses among, beside its own: 0.6,0.7,0.8; made by [variants]. none: "
        "all keep theirs.",
        metavar="LIST",
    ),
]
LayerFormatsOption = Annotated[
    str | None,
    typer.Option(
        help="Number formats that each layer chooses among: int8,int4. none: the export decides.", metavar="LIST"
    ),
]

NONE = "none"
FORMATS = ("int8", "int4")


def parse_ratios(text: str | None) -> tuple[float, ...] | None:
    """The shares of a list; None where the option was left out.

    Raises:
        UsageError: a part is no number.
    """
    if text is None or text == NONE:
        return None if text is None else ()
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{text!r} is no list of numbers", where="--ratios", remedy="Such as 0.6,0.7,0.8") from None


def parse_layer_formats(text: str | None) -> tuple[LayerFormat, ...] | None:
    """The formats of a list; None where the option was left out.

    Raises:
        UsageError: layers cannot choose a format of that name.
    """
    if text is None or text == NONE:
        return None if text is None else ()
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        if name not in FORMATS:
            raise UsageError(
                f"layers cannot choose {name!r}",
                where="--layer-formats",
                remedy=f"They choose among {', '.join(FORMATS)}; --weight-format is for all of them",
            )
    return cast("tuple[LayerFormat, ...]", names)
