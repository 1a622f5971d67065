"""Plain attention between two packed layers, as the exporter writes it and OpenVINO fuses it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .graph_match import Array, NoMatch, array_and_other, integers_of, node_of, number_of, only_reader
from .rotary_match import Rotary, unrotate

HEAD_SIZE_STEP = 16
MOST_HEAD_SIZE = 4096
MOST_ANGLE_SETS = 8


@dataclass(frozen=True)
class PlainAttention:
    """One attention between two packed operators.

    Attributes:
        layer: the SparseLayer that reads it.
        inputs: outputs that queries, keys and values come from, [batch, rows, heads * size].
        biases: of queries, keys and values; none where there are none.
        gammas: of the norms of queries and keys; none where there are none.
        epsilon: of these norms; 0 where there are none.
        rotary: None where heads are not turned.
        mask: output, with the window in it.
        variables: of its cache, by name.
    """

    layer: Any
    inputs: tuple[Any, Any, Any]
    biases: tuple[Array, ...]
    gammas: tuple[Array, ...]
    epsilon: float
    heads: int
    kv_heads: int
    head_size: int
    scale: float
    rotary: Rotary | None
    mask: Any
    beam: Any
    variables: tuple[str, str]


def find_attentions(model: Any, config: Mapping[str, Any]) -> list[PlainAttention]:
    """Those of a packed decoder, in the order of its layers.

    Args:
        model: an `openvino.Model` with a cache in variables.
        config: of the model, as in config.json: what it says of caps on scores, which a graph leaves out.

    Raises:
        NoMatch: one of them is something else, or something lies between the layers.
    """
    if config.get("attn_logit_softcapping") is not None:
        raise NoMatch("scores of attention are capped")
    nodes = model.get_ordered_ops()
    layers = [node for node in nodes if node.get_type_name() == "SparseLayer"]
    attentions = [_match(node) for node in nodes if node.get_type_name() == "ScaledDotProductAttention"]
    if not attentions or [item.layer for item in attentions] != layers:
        raise NoMatch("not every attention lies before a packed layer")
    if any(item.beam != attentions[0].beam for item in attentions):
        raise NoMatch("layers differ in the order of their sequences")
    if not 0 < len(angle_sets(attentions)) <= MOST_ANGLE_SETS:
        raise NoMatch("no rotary embedding, or too many")
    if len({(item.rotary.size, item.rotary.interleaved) for item in attentions if item.rotary is not None}) > 1:
        raise NoMatch("layers turn different parts of a head")
    for before, item in itertools.pairwise(attentions):
        fed_by = {output.get_node() for output in item.inputs}
        follows = fed_by == {before.layer} and item.layer.input_value(1) == before.layer.output(0)
        if before.layer.get_output_size() != 4 or not follows:
            raise NoMatch("something lies between a packed layer and the next attention")
    names = {name for item in attentions for name in item.variables}
    if {sink.get_variable_id() for sink in model.get_sinks()} != names or len(names) != 2 * len(attentions):
        raise NoMatch("the model keeps more than keys and values")
    _require_no_other_reader(model, attentions, names)
    return attentions


def _require_no_other_reader(model: Any, attentions: Sequence[PlainAttention], variables: set[str]) -> None:
    """What stays beside layers with attention in them must not need the layers or the caches that they replace."""
    first, last = attentions[0], attentions[-1].layer
    waiting = [result.input_value(0) for result in model.get_results()]
    waiting += [table for pair in angle_sets(attentions) for table in pair]
    waiting += [*first.inputs, first.layer.input_value(1)]
    seen: set[str] = set()
    while waiting:
        output = waiting.pop()
        node = output.get_node()
        if output == last.output(0) or node.get_friendly_name() in seen:
            continue
        seen.add(node.get_friendly_name())
        if node.get_type_name() == "ReadValue" and node.get_variable_id() in variables:
            raise NoMatch("something else reads a packed layer or its cache")
        waiting += node.input_values()


def angle_sets(attentions: Sequence[PlainAttention]) -> list[tuple[Any, Any]]:
    """Cosines and sines that some layer is turned by."""
    found: list[tuple[Any, Any]] = []
    for item in attentions:
        if item.rotary is not None and item.rotary.angles not in found:
            found.append(item.rotary.angles)
    return found


def _match(sdpa: Any) -> PlainAttention:
    if sdpa.get_attributes().get("causal") or len(sdpa.inputs()) not in (4, 5):
        raise NoMatch("the mask of an attention is not an input")
    joined = only_reader(only_reader(sdpa, "Transpose"), "Reshape")
    layer = only_reader(joined, "SparseLayer")
    if layer.input_value(0).get_node() != joined:
        raise NoMatch("an attention is added to something")
    query, rotary = unrotate(sdpa.input_value(0))
    keys, key_name, beam = _cached(sdpa.input_value(1))
    values, value_name, value_beam = _cached(sdpa.input_value(2))
    key, key_rotary = unrotate(keys)
    if (rotary, beam) != (key_rotary, value_beam):
        raise NoMatch("queries and keys are turned by different angles")
    parts = [_split_heads(output) for output in (query, key, values)]
    (heads, size), (kv_heads, key_size), (value_heads, value_size) = (part.shape for part in parts)
    if not (size == key_size == value_size and kv_heads == value_heads and heads % kv_heads == 0):
        raise NoMatch("heads differ in size")
    if size % HEAD_SIZE_STEP or size > MOST_HEAD_SIZE:
        raise NoMatch(f"heads of {size}")
    biases = tuple(part.bias for part in parts if part.bias is not None)
    norms = tuple(part.norm for part in parts if part.norm is not None)
    if len(biases) not in (0, 3) or len(norms) not in (0, 2) or parts[2].norm is not None:
        raise NoMatch("biases or norms of some alone")
    if len({epsilon for _, epsilon in norms}) > 1:
        raise NoMatch("norms of queries and keys differ")
    return PlainAttention(
        layer=layer,
        inputs=(parts[0].rows, parts[1].rows, parts[2].rows),
        biases=biases,
        gammas=tuple(gamma for gamma, _ in norms),
        epsilon=norms[0][1] if norms else 0.0,
        heads=heads,
        kv_heads=kv_heads,
        head_size=size,
        scale=size**-0.5 if len(sdpa.inputs()) == 4 else number_of(sdpa.input_value(4).get_node()),
        rotary=rotary,
        mask=sdpa.input_value(3),
        beam=beam,
        variables=(key_name, value_name),
    )


def _cached(output: Any) -> tuple[Any, str, Any]:
    """What is appended to a cache, its name, and the order of the sequences; before or after heads are repeated."""
    node = output.get_node()
    if node.get_type_name() == "Reshape":
        node = node_of(node_of(node.input_value(0), "Broadcast").input_value(0), "Unsqueeze").input_value(0).get_node()
    if node.get_type_name() != "Concat" or len(node.inputs()) != 2 or node.get_attributes()["axis"] not in (-2, 2):
        raise NoMatch("no cache of keys and values")
    gather = node_of(node.input_value(0), "Gather")
    read = node_of(gather.input_value(0), "ReadValue")
    beam = node_of(gather.input_value(1), "Parameter")
    if number_of(gather.input_value(2).get_node()) != 0:
        raise NoMatch("no cache of keys and values")
    return node.input_value(1), str(read.get_variable_id()), beam.output(0)


@dataclass(frozen=True)
class _Heads:
    """What heads are cut from.

    Attributes:
        rows: output [batch, rows, heads * size].
        bias: [heads * size] that is added to them, or None.
        norm: gamma [size] and epsilon of an RMS norm of every head, or None.
        shape: how many heads, and their size.
    """

    rows: Any
    bias: Array | None
    norm: tuple[Array, float] | None
    shape: tuple[int, int]


def _split_heads(output: Any) -> _Heads:
    # A norm of heads comes before they are transposed, or behind.
    behind, norm_behind = _unnormalize(output)
    source, norm_before = _unnormalize(_untransposed(behind))
    if norm_before is not None and norm_behind is not None:
        raise NoMatch("two norms of heads")
    norm = norm_before or norm_behind
    shape = node_of(source, "Reshape").get_output_partial_shape(0)
    if len(shape) != 4 or not shape[2].is_static or not shape[3].is_static:
        raise NoMatch("the number of heads is not known")
    rows, bias = source.get_node().input_value(0), None
    if rows.get_node().get_type_name() == "Add":
        bias, rows = array_and_other(rows.get_node())
        bias = bias.reshape(-1)
    heads, size = shape[2].get_length(), shape[3].get_length()
    if (bias is not None and bias.size != heads * size) or (norm is not None and norm[0].size != size):
        raise NoMatch("a bias or a norm of another size")
    return _Heads(rows, bias, norm, (heads, size))


def _untransposed(output: Any) -> Any:
    """[batch, rows, heads, size] of [batch, heads, rows, size]."""
    node = output.get_node()
    if node.get_type_name() == "Reshape" and integers_of(node.input_value(1)) == [0, 1, -1, 0]:
        # OpenVINO's transposition of one head: of more it would mix them with rows.
        shape = node.get_input_partial_shape(0)
        if shape.rank.is_static and len(shape) == 4 and shape[2].is_static and shape[2].get_length() == 1:
            return node.input_value(0)
    if integers_of(node_of(output, "Transpose").input_value(1)) != [0, 2, 1, 3]:
        raise NoMatch("heads lie in another order")
    return node.input_value(0)


def _unnormalize(output: Any) -> tuple[Any, tuple[Array, float] | None]:
    """x, and gamma and epsilon, of gamma * (x * (1 / sqrt(mean(x^2) + epsilon))); of what no product ends, itself."""
    if output.get_node().get_type_name() != "Multiply":
        return output, None
    gamma, normalized = array_and_other(output.get_node())
    product = node_of(normalized, "Multiply")
    divides = [port for port in (0, 1) if product.input_value(port).get_node().get_type_name() == "Divide"]
    if len(divides) != 1:
        raise NoMatch("no norm of heads")
    x, divide = product.input_value(1 - divides[0]), product.input_value(divides[0]).get_node()
    total = node_of(node_of(divide.input_value(1), "Sqrt").input_value(0), "Add")
    epsilon, mean = array_and_other(total)
    power = node_of(node_of(mean, "ReduceMean").input_value(0), "Power")
    axes = number_of(mean.get_node().input_value(1).get_node())
    if (
        number_of(divide.input_value(0).get_node()) != 1.0
        or axes not in (-1, 3)
        or number_of(power.input_value(1).get_node()) != 2.0
        or power.input_value(0) != x
        or epsilon.size != 1
    ):
        raise NoMatch("no norm of heads")
    return x, (gamma.reshape(-1), float(epsilon.reshape(())))


COMPARISONS = {"LessEqual", "Less", "Greater", "GreaterEqual", "Equal", "NotEqual"}


def find_window(mask: Any) -> int:
    """How many positions a mask lets a query see, its own among them; 0 where it hides the future and padding alone.

    That of the future compares positions once, key <= query; a window once more, key > query - size.
    """
    seen: set[str] = set()
    compared: dict[str, Any] = {}
    waiting = [mask.get_node()]
    while waiting:
        node = waiting.pop()
        if node.get_friendly_name() in seen:
            continue
        seen.add(node.get_friendly_name())
        if node.get_type_name() in COMPARISONS:
            if node.get_type_name() in compared:
                raise NoMatch("the mask is not that of the future and of a window")
            compared[node.get_type_name()] = node
        if node.get_type_name() not in ("ReadValue", "ShapeOf"):
            waiting += [port.get_source_output().get_node() for port in node.inputs()]
    if not {"LessEqual"} <= set(compared) <= {"LessEqual", "Greater"}:
        raise NoMatch("the mask is not that of the future and of a window")
    if "Greater" not in compared:
        return 0
    future, near = compared["LessEqual"], compared["Greater"]
    edge = near.input_value(1).get_node()
    if edge.get_type_name() not in ("Add", "Subtract") or near.input_value(0) != future.input_value(0):
        raise NoMatch("the mask is not that of the future and of a window")
    size = number_of(edge.input_value(1).get_node()) * (1 if edge.get_type_name() == "Subtract" else -1)
    if edge.input_value(0) != future.input_value(1) or size < 1:
        raise NoMatch("the mask is not that of the future and of a window")
    return int(size)
