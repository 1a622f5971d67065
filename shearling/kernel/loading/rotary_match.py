"""The rotary embedding of queries and keys, as a graph computes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .graph_match import NoMatch, integers_of, node_of, number_of


class NoRotary(NoMatch):
    """What is there turns heads in another way, or not at all."""

    def __init__(self) -> None:
        super().__init__("no rotary embedding of halves or neighbours")


@dataclass(frozen=True)
class Rotary:
    """How queries and keys are turned.

    Attributes:
        angles: outputs of cosines and sines, [batch or 1, rows, size].
        size: numbers at the start of a head that are turned.
        interleaved: neighbours are turned together, not a number of one half and the one of the other.
    """

    angles: tuple[Any, Any]
    size: int
    interleaved: bool


def unrotate(output: Any) -> tuple[Any, Rotary | None]:
    """What is turned, and how: x * cos + turned(x) * sin, of all of a head or of its start; of all else itself."""
    node = output.get_node()
    if node.get_type_name() == "Add":
        x, rotary = _turned(node)
        return _uncut(x), rotary
    if not _joins_two(node, axis=3) or node.input_value(0).get_node().get_type_name() != "Add":
        return output, None
    part, rotary = _turned(node.input_value(0).get_node())
    whole = node_of(part, "Slice").input_value(0)
    edges = [_slice(part, whole), _slice(node.input_value(1), whole)]
    if edges != [(0, rotary.size, 1), (rotary.size, _width(whole), 1)]:
        raise NoRotary
    return whole, rotary


def _uncut(x: Any) -> Any:
    """What a slice of all is a slice of."""
    if x.get_node().get_type_name() != "Slice":
        return x
    whole = x.get_node().input_value(0)
    return whole if _slice(x, whole) == (0, _width(whole), 1) else x


def _turned(add: Any) -> tuple[Any, Rotary]:
    """x, and how it is turned, of x * cos + concat(-x[half:], x[:half]) * sin, or of the same with even and odd numbers
    in place of halves.
    """
    sides = [node_of(add.input_value(port), "Multiply") for port in (0, 1)]
    crossed = [side for side in sides if _is_joined(side.input_value(0).get_node())]
    if len(crossed) != 1:
        raise NoRotary
    straight = sides[1 - sides.index(crossed[0])]
    x, other = straight.input_value(0), crossed[0].input_value(0).get_node()
    width = _width(x)
    interleaved = other.get_type_name() == "Reshape"
    if interleaved:
        joined = other.input_value(0).get_node()
        if not _joins_two(joined, axis=4) or _width(other.output(0)) != width:
            raise NoRotary
        pair = [node_of(joined.input_value(port), "Unsqueeze") for port in (0, 1)]
        if any(number_of(node.input_value(1).get_node()) not in (-1, 4) for node in pair):
            raise NoRotary
        high, low = (node.input_value(0) for node in pair)
        parts = [(1, width, 2), (0, width, 2)]
    else:
        if not _joins_two(other, axis=3):
            raise NoRotary
        high, low = other.input_value(0), other.input_value(1)
        parts = [(width // 2, width, 1), (0, width // 2, 1)]
    negative = node_of(high, "Multiply")
    if number_of(negative.input_value(1).get_node()) != -1.0:
        raise NoRotary
    if [_slice(negative.input_value(0), x), _slice(low, x)] != parts:
        raise NoRotary
    tables = [_table(side.input_value(1), width, interleaved=interleaved) for side in (straight, crossed[0])]
    return x, Rotary((tables[0], tables[1]), width, interleaved)


def _is_joined(node: Any) -> bool:
    """Whether a node puts numbers together: a reshape of anything else may be the transposition of a single head."""
    if node.get_type_name() == "Reshape":
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "Concat")


def _joins_two(node: Any, *, axis: int) -> bool:
    """Whether a node joins two tensors along their last axis, which is this one."""
    return node.get_type_name() == "Concat" and len(node.inputs()) == 2 and node.get_attributes()["axis"] in (-1, axis)


def _width(x: Any) -> int:
    """The last of four sizes."""
    shape = x.get_partial_shape()
    if shape.rank.is_dynamic or len(shape) != 4 or not shape[3].is_static:
        raise NoMatch("the size of heads is not known")
    return int(shape[3].get_length())


def _slice(output: Any, x: Any) -> tuple[int, int, int]:
    """Start, end and step of a slice of the last axis."""
    node = node_of(output, "Slice")
    if node.input_value(0) != x or len(node.inputs()) != 5:
        raise NoRotary
    start, stop, step, axis = (int(number_of(node.input_value(port).get_node())) for port in (1, 2, 3, 4))
    width = _width(x)
    if axis not in (3, -1):
        raise NoRotary
    return start, min(stop, width), step


def _table(output: Any, width: int, *, interleaved: bool) -> Any:
    """What a table of angles is before an axis for the heads is put into it, and before its first half is repeated for
    neighbours.
    """
    if interleaved:
        output = _unrepeated(output, width)
    node = node_of(output, "Unsqueeze")
    if number_of(node.input_value(1).get_node()) != 1:
        raise NoRotary
    table = node.input_value(0)
    shape = table.get_partial_shape()
    if shape.rank.is_dynamic or len(shape) != 3 or not shape[2].is_static or shape[2].get_length() != width:
        raise NoRotary
    if interleaved and not _has_equal_halves(table):
        raise NoRotary
    return table


def _unrepeated(output: Any, width: int) -> Any:
    """What an output is the first half of, with every number twice."""
    gather = node_of(output, "Gather")
    half = gather.input_value(0)
    whole = node_of(half, "Slice").input_value(0)
    if _slice(half, whole) != (0, width // 2, 1) or number_of(gather.input_value(2).get_node()) not in (-1, 3):
        raise NoRotary
    transpose = node_of(node_of(gather.input_value(1), "Reshape").input_value(0), "Transpose")
    tile = node_of(transpose.input_value(0), "Tile")
    unsqueeze = node_of(tile.input_value(0), "Unsqueeze")
    count = node_of(unsqueeze.input_value(0), "Range")
    numbers = [number_of(count.input_value(port).get_node()) for port in (0, 2)]
    size = node_of(node_of(count.input_value(1), "Gather").input_value(0), "ShapeOf")
    place = number_of(count.input_value(1).get_node().input_value(1).get_node())
    if (
        integers_of(transpose.input_value(1)) != [1, 0]
        or integers_of(tile.input_value(1)) != [2, 1]
        or integers_of(unsqueeze.input_value(1)) != [0]
        or (numbers, place) != ([0.0, 1.0], -1.0)
        or _width(size.input_value(0)) != width // 2  # of cosines or sines: they are alike
    ):
        raise NoRotary
    return whole


def _has_equal_halves(table: Any) -> bool:
    """Whether the second half of a table is its first."""
    node = table.get_node()
    while node.get_type_name() in ("Cos", "Sin", "Convert", "Multiply"):
        if node.get_type_name() == "Multiply":
            number_of(node.input_value(1).get_node())  # a scale
        node = node.input_value(0).get_node()
    return _joins_two(node, axis=2) and node.input_value(0) == node.input_value(1)
