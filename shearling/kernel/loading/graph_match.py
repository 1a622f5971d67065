"""Whether a node of a graph is what is looked for, and what it reads; said by exception where it is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


class NoMatch(Exception):
    """What is there is something else; the reason in words."""


def node_of(output: Any, kind: str) -> Any:
    """The node that an output is of.

    Raises:
        NoMatch: it is of another kind.
    """
    node = output.get_node()
    if node.get_type_name() != kind:
        raise NoMatch(f"{node.get_type_name()} where {kind} was expected")
    return node


def only_reader(node: Any, kind: str) -> Any:
    """The one node that reads a node."""
    readers = list(node.output(0).get_target_inputs())
    if len(readers) != 1 or readers[0].get_node().get_type_name() != kind:
        raise NoMatch(f"an attention is not read by one {kind}")
    return readers[0].get_node()


def number_of(node: Any) -> float:
    """Of a constant with one number, converted or not.

    Raises:
        NoMatch: it is something else.
    """
    while node.get_type_name() in ("Convert", "ConvertLike"):
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Constant" or node.data.size != 1:
        raise NoMatch("a number is computed")
    return float(node.data.reshape(()))


def integers_of(output: Any) -> list[int]:
    """Of a constant; none where it is none."""
    node = output.get_node()
    return node.data.reshape(-1).tolist() if node.get_type_name() == "Constant" else []


def array_and_other(node: Any) -> tuple[Array, Any]:
    """The constant that is one input of a node, in float32, and the other input."""
    for port in (0, 1):
        source = node.input_value(port).get_node()
        while source.get_type_name() == "Convert":
            source = source.input_value(0).get_node()
        if source.get_type_name() == "Constant" and source.get_element_type().get_type_name() in ("f32", "f16"):
            return np.asarray(source.data, dtype=np.float32), node.input_value(1 - port)
    raise NoMatch("no constant where one was expected")
