"""Whole decoder layers, as many as have one shape, as one operator: where packed layers follow each other with nothing
but plain attention between them, attention, rotary embedding and cache go into the layers when a model is loaded.

A token of a small model spends a third of its time between the packed products: nodes of dynamic shape, each of which
costs microseconds, and attention itself. The file is not changed. It stays one that continuous batching can rewrite,
which looks for OpenVINO's own attention.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .ir_text import FORMAT_VERSION, IrText, MalformedText, Source

STOCK_ATTENTION = {"ATTENTION_BACKEND", "KV_CACHE_PRECISION", "scheduler_config", "draft_model", "prompt_lookup"}
"""Properties with which a packed decoder keeps OpenVINO's attention: they ask for that of GenAI's continuous batching,
or for another precision of its cache than the f16 of ours.
"""
Array = npt.NDArray[np.float32]
HEAD_SIZE_STEP = 16
MOST_HEAD_SIZE = 4096
MOST_ANGLE_SETS = 8


class _NoMatch(Exception):
    """What is there is something else; the reason in words."""


@dataclass(frozen=True)
class _Attention:
    """One attention between two packed operators.

    Attributes:
        layer: the SparseLayer that reads it.
        inputs: outputs that queries, keys and values come from, [batch, rows, heads * size].
        biases: of queries, keys and values; none where there are none.
        gammas: of the norms of queries and keys; none where there are none.
        epsilon: of these norms; 0 where there are none.
        angles: outputs of cosines and sines, [batch or 1, rows, size]; None where heads are not turned.
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
    angles: tuple[Any, Any] | None
    mask: Any
    beam: Any
    variables: tuple[str, str]


def fuse_decoder(text: IrText, model: Any, config: Mapping[str, Any]) -> str | None:
    """Put every attention of a packed decoder into the layer behind it.

    Args:
        text: of the IR; changed where there is no obstacle.
        model: the `openvino.Model` that was read from this text, with a cache in variables.
        config: of the model, as in config.json: what it says of caps on scores, which a graph leaves out.

    Returns:
        Why nothing was changed; None where it was.
    """
    try:
        attentions = _find(model, config)
        windows = {item.mask: _window(item.mask) for item in attentions}
        _rewrite(text, attentions, [windows[item.mask] for item in attentions], _mask_parameter(model))
    except _NoMatch as reason:
        return str(reason)
    except MalformedText as fault:
        return f"its text cannot be changed: {fault}"
    return None


def _find(model: Any, config: Mapping[str, Any]) -> list[_Attention]:
    if config.get("attn_logit_softcapping") is not None:
        raise _NoMatch("scores of attention are capped")
    nodes = model.get_ordered_ops()
    layers = [node for node in nodes if node.get_type_name() == "SparseLayer"]
    attentions = [_attention(node) for node in nodes if node.get_type_name() == "ScaledDotProductAttention"]
    if not attentions or [item.layer for item in attentions] != layers:
        raise _NoMatch("not every attention lies before a packed layer")
    if any(item.beam != attentions[0].beam for item in attentions):
        raise _NoMatch("layers differ in the order of their sequences")
    if not 0 < len(_sets(attentions)) <= MOST_ANGLE_SETS:
        raise _NoMatch("no rotary embedding, or too many")
    for before, item in itertools.pairwise(attentions):
        if before.layer.get_output_size() != 4 or {output.get_node() for output in item.inputs} != {before.layer}:
            raise _NoMatch("something lies between a packed layer and the next attention")
    names = {name for item in attentions for name in item.variables}
    if {sink.get_variable_id() for sink in model.get_sinks()} != names or len(names) != 2 * len(attentions):
        raise _NoMatch("the model keeps more than keys and values")
    return attentions


def _sets(attentions: Sequence[_Attention]) -> list[tuple[Any, Any]]:
    """Cosines and sines that some layer is turned by."""
    found: list[tuple[Any, Any]] = []
    for item in attentions:
        if item.angles is not None and item.angles not in found:
            found.append(item.angles)
    return found


def _attention(sdpa: Any) -> _Attention:
    if sdpa.get_attributes().get("causal") or len(sdpa.inputs()) not in (4, 5):
        raise _NoMatch("the mask of an attention is not an input")
    joined = _only(_only(sdpa, "Transpose"), "Reshape")
    layer = _only(joined, "SparseLayer")
    if layer.input_value(0).get_node() != joined:
        raise _NoMatch("an attention is added to something")
    query, angles = _unrotate(sdpa.input_value(0))
    keys, key_name, beam = _cached(sdpa.input_value(1))
    values, value_name, value_beam = _cached(sdpa.input_value(2))
    key, key_angles = _unrotate(keys)
    if (angles, beam) != (key_angles, value_beam):
        raise _NoMatch("queries and keys are turned by different angles")
    parts = [_split_heads(output) for output in (query, key, values)]
    (heads, size), (kv_heads, key_size), (value_heads, value_size) = (part.shape for part in parts)
    if not (size == key_size == value_size and kv_heads == value_heads and heads % kv_heads == 0):
        raise _NoMatch("heads differ in size")
    if size % HEAD_SIZE_STEP or size > MOST_HEAD_SIZE:
        raise _NoMatch(f"heads of {size}")
    for table in angles or ():
        turned = table.get_partial_shape()
        if turned.rank.is_dynamic or len(turned) != 3 or not turned[2].is_static or turned[2].get_length() != size:
            raise _NoMatch("heads are turned in part")
    biases = tuple(part.bias for part in parts if part.bias is not None)
    norms = tuple(part.norm for part in parts if part.norm is not None)
    if len(biases) not in (0, 3) or len(norms) not in (0, 2) or parts[2].norm is not None:
        raise _NoMatch("biases or norms of some alone")
    if len({epsilon for _, epsilon in norms}) > 1:
        raise _NoMatch("norms of queries and keys differ")
    return _Attention(
        layer=layer,
        inputs=(parts[0].rows, parts[1].rows, parts[2].rows),
        biases=biases,
        gammas=tuple(gamma for gamma, _ in norms),
        epsilon=norms[0][1] if norms else 0.0,
        heads=heads,
        kv_heads=kv_heads,
        head_size=size,
        scale=size**-0.5 if len(sdpa.inputs()) == 4 else _number(sdpa.input_value(4).get_node()),
        angles=angles,
        mask=sdpa.input_value(3),
        beam=beam,
        variables=(key_name, value_name),
    )


def _unrotate(output: Any) -> tuple[Any, tuple[Any, Any] | None]:
    """x, and cosines and sines, of x * cos + concat(-x[half:], x[:half]) * sin; of all else itself and None."""
    add = output.get_node()
    if add.get_type_name() != "Add":
        return output, None
    sides = [_node(add.input_value(port), "Multiply") for port in (0, 1)]
    turned = [side for side in sides if side.input_value(0).get_node().get_type_name() == "Concat"]
    if len(turned) != 1:
        raise _NoMatch("no rotary embedding of halves")
    straight = sides[1 - sides.index(turned[0])]
    x = straight.input_value(0)
    halves = _node(turned[0].input_value(0), "Concat")
    if len(halves.inputs()) != 2 or halves.get_attributes()["axis"] not in (-1, 3):
        raise _NoMatch("no rotary embedding of halves")
    negative = _node(halves.input_value(0), "Multiply")
    width = _width(x)
    if _number(negative.input_value(1).get_node()) != -1.0:
        raise _NoMatch("no rotary embedding of halves")
    if _slice(negative.input_value(0), x) != (width // 2, None) or _slice(halves.input_value(1), x) != (0, width // 2):
        raise _NoMatch("no rotary embedding of halves")
    return x, (_table(straight.input_value(1)), _table(turned[0].input_value(1)))


def _width(x: Any) -> int:
    """The last of four sizes."""
    shape = x.get_partial_shape()
    if shape.rank.is_dynamic or len(shape) != 4 or not shape[3].is_static:
        raise _NoMatch("the size of heads is not known")
    return int(shape[3].get_length())


def _slice(output: Any, x: Any) -> tuple[int, int | None]:
    """Start and end of a slice of the last axis; None for an end that is x's."""
    node = _node(output, "Slice")
    if node.input_value(0) != x or len(node.inputs()) != 5:
        raise _NoMatch("no rotary embedding of halves")
    start, stop, step, axis = (int(_number(node.input_value(port).get_node())) for port in (1, 2, 3, 4))
    width = _width(x)
    if step != 1 or axis not in (3, -1):
        raise _NoMatch("no rotary embedding of halves")
    return start, None if stop >= width else stop


def _table(output: Any) -> Any:
    """What a table of angles is before an axis for the heads is put into it."""
    node = _node(output, "Unsqueeze")
    if _number(node.input_value(1).get_node()) != 1:
        raise _NoMatch("no rotary embedding of halves")
    return node.input_value(0)


def _cached(output: Any) -> tuple[Any, str, Any]:
    """What is appended to a cache, its name, and the order of the sequences; before or after heads are repeated."""
    node = output.get_node()
    if node.get_type_name() == "Reshape":
        node = _node(_node(node.input_value(0), "Broadcast").input_value(0), "Unsqueeze").input_value(0).get_node()
    if node.get_type_name() != "Concat" or len(node.inputs()) != 2 or node.get_attributes()["axis"] not in (-2, 2):
        raise _NoMatch("no cache of keys and values")
    gather = _node(node.input_value(0), "Gather")
    read = _node(gather.input_value(0), "ReadValue")
    beam = _node(gather.input_value(1), "Parameter")
    if _number(gather.input_value(2).get_node()) != 0:
        raise _NoMatch("no cache of keys and values")
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
    transpose = _node(behind, "Transpose")
    axes = transpose.input_value(1).get_node()
    if axes.get_type_name() != "Constant" or axes.data.tolist() != [0, 2, 1, 3]:
        raise _NoMatch("heads lie in another order")
    source, norm_before = _unnormalize(transpose.input_value(0))
    if norm_before is not None and norm_behind is not None:
        raise _NoMatch("two norms of heads")
    norm = norm_before or norm_behind
    shape = _node(source, "Reshape").get_output_partial_shape(0)
    if len(shape) != 4 or not shape[2].is_static or not shape[3].is_static:
        raise _NoMatch("the number of heads is not known")
    rows, bias = source.get_node().input_value(0), None
    if rows.get_node().get_type_name() == "Add":
        bias, rows = _array_and_other(rows.get_node())
        bias = bias.reshape(-1)
    heads, size = shape[2].get_length(), shape[3].get_length()
    if (bias is not None and bias.size != heads * size) or (norm is not None and norm[0].size != size):
        raise _NoMatch("a bias or a norm of another size")
    return _Heads(rows, bias, norm, (heads, size))


def _unnormalize(output: Any) -> tuple[Any, tuple[Array, float] | None]:
    """x, and gamma and epsilon, of gamma * (x * (1 / sqrt(mean(x^2) + epsilon))); of what no product ends, itself."""
    if output.get_node().get_type_name() != "Multiply":
        return output, None
    gamma, normalized = _array_and_other(output.get_node())
    product = _node(normalized, "Multiply")
    divides = [port for port in (0, 1) if product.input_value(port).get_node().get_type_name() == "Divide"]
    if len(divides) != 1:
        raise _NoMatch("no norm of heads")
    x, divide = product.input_value(1 - divides[0]), product.input_value(divides[0]).get_node()
    total = _node(_node(divide.input_value(1), "Sqrt").input_value(0), "Add")
    epsilon, mean = _array_and_other(total)
    power = _node(_node(mean, "ReduceMean").input_value(0), "Power")
    axes = _number(mean.get_node().input_value(1).get_node())
    if (
        _number(divide.input_value(0).get_node()) != 1.0
        or axes not in (-1, 3)
        or _number(power.input_value(1).get_node()) != 2.0
        or power.input_value(0) != x
        or epsilon.size != 1
    ):
        raise _NoMatch("no norm of heads")
    return x, (gamma.reshape(-1), float(epsilon.reshape(())))


def _array_and_other(node: Any) -> tuple[Array, Any]:
    """The constant that is one input of a node, in float32, and the other input."""
    for port in (0, 1):
        source = node.input_value(port).get_node()
        while source.get_type_name() == "Convert":
            source = source.input_value(0).get_node()
        if source.get_type_name() == "Constant" and source.get_element_type().get_type_name() in ("f32", "f16"):
            return np.asarray(source.data, dtype=np.float32), node.input_value(1 - port)
    raise _NoMatch("no constant where one was expected")


COMPARISONS = {"LessEqual", "Less", "Greater", "GreaterEqual", "Equal", "NotEqual"}


def _window(mask: Any) -> int:
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
                raise _NoMatch("the mask is not that of the future and of a window")
            compared[node.get_type_name()] = node
        if node.get_type_name() not in ("ReadValue", "ShapeOf"):
            waiting += [port.get_source_output().get_node() for port in node.inputs()]
    if not {"LessEqual"} <= set(compared) <= {"LessEqual", "Greater"}:
        raise _NoMatch("the mask is not that of the future and of a window")
    if "Greater" not in compared:
        return 0
    future, near = compared["LessEqual"], compared["Greater"]
    edge = near.input_value(1).get_node()
    if edge.get_type_name() not in ("Add", "Subtract") or near.input_value(0) != future.input_value(0):
        raise _NoMatch("the mask is not that of the future and of a window")
    size = _number(edge.input_value(1).get_node()) * (1 if edge.get_type_name() == "Subtract" else -1)
    if edge.input_value(0) != future.input_value(1) or size < 1:
        raise _NoMatch("the mask is not that of the future and of a window")
    return int(size)


def _mask_parameter(model: Any) -> Any:
    for parameter in model.get_parameters():
        if "attention_mask" in parameter.output(0).get_names():
            return parameter
    raise _NoMatch("the model is given no mask")


def _node(output: Any, kind: str) -> Any:
    node = output.get_node()
    if node.get_type_name() != kind:
        raise _NoMatch(f"{node.get_type_name()} where {kind} was expected")
    return node


def _only(node: Any, kind: str) -> Any:
    """The one node that reads a node."""
    readers = list(node.output(0).get_target_inputs())
    if len(readers) != 1 or readers[0].get_node().get_type_name() != kind:
        raise _NoMatch(f"an attention is not read by one {kind}")
    return readers[0].get_node()


def _number(node: Any) -> float:
    while node.get_type_name() in ("Convert", "ConvertLike"):
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Constant" or node.data.size != 1:
        raise _NoMatch("a number is computed")
    return float(node.data.reshape(()))


def _rewrite(text: IrText, attentions: Sequence[_Attention], windows: Sequence[int], mask: Any) -> None:
    # What can fail comes first, so that a text is changed as a whole or not at all.
    first, sets = attentions[0], _sets(attentions)
    tables = [table for pair in sets for table in pair]
    shared = [text.source(output) for output in (*tables, mask.output(0), first.beam)]
    # What goes into the first layer is joined as the others leave it, so that it is like them.
    order = _order(attentions[1].inputs) if len(attentions) > 1 else [0, 1, 2]
    queries = [text.source(first.inputs[part]) for part in order]
    old = [number for number in text.layers_of(("Assign",)) if _is_cache(text, number, attentions)]
    orders = [order, *(_order(item.inputs) for item in attentions[1:])]
    angles = [-1 if item.angles is None else sets.index(item.angles) for item in attentions]
    layers = [_layer(text, *layer) for layer in zip(attentions, orders, windows, angles, strict=True)]
    joined = text.add("Concat", queries, {"axis": -1}, version="opset1")[0]
    (step,) = text.add("SparseStep", shared, {"format_version": FORMAT_VERSION})
    residual = layers[0].residual
    for place, (_, alike) in enumerate(itertools.groupby(layers, key=lambda layer: layer.data)):
        run = list(alike)
        last = run[-1]
        read, variable = _add_cache(text, run, place)
        inputs = [joined, residual, step, read, *(layer.weights for layer in run)]
        vectors = [vector for layer in run for vector in layer.vectors]
        if vectors:
            inputs.append(text.numbers(np.concatenate(vectors)))
        outputs = 2 if len(last.ends) == 1 else 3
        data = {**last.data, "layers": len(run)}
        data |= {name: value for name, value in _by_layer(run).items() if any(value)}
        fused = text.add("SparseDecoder", inputs, data, outputs=outputs, name=text.name(last.number))
        text.add("Assign", [fused[1]], variable, version="opset6", outputs=0)
        text.replace(last.ends[0], fused[0])
        residual, joined = fused[0], fused[-1]
    text.remove(old)


@dataclass(frozen=True)
class _Layer:
    """One packed layer of the text, with the attention that goes into it.

    Attributes:
        data: attributes of a `SparseDecoder` of this layer, but for those of each layer.
        window, angles: those.
        vectors: that are added to queries, keys and values, and gammas of the norms of heads.
        planes: heads of keys and values in its cache.
        slot: bytes of a position in one of them.
        ends: outputs of the layer; the first is the residual of the next.
    """

    number: int
    data: dict[str, object]
    residual: Source
    weights: Source
    vectors: tuple[Array, ...]
    planes: int
    slot: int
    ends: list[Source]
    window: int
    angles: int


def _by_layer(run: Sequence[_Layer]) -> dict[str, list[int]]:
    return {"windows": [layer.window for layer in run], "angles": [layer.angles for layer in run]}


def _layer(text: IrText, item: _Attention, order: list[int], window: int, angles: int) -> _Layer:
    number = text.source(item.layer.output(0)).layer
    _, residual, weights = text.inputs(number)
    data = {
        **text.data(number),
        "heads": item.heads,
        "kv_heads": item.kv_heads,
        "head_size": item.head_size,
        "scale": item.scale,
        "order": order,
        "qkv_bias": bool(item.biases),
        "head_norm_epsilon": item.epsilon,
    }
    vectors = (*(item.biases[part] for part in order if item.biases), *item.gammas)
    return _Layer(
        number,
        data,
        residual,
        weights,
        vectors,
        planes=2 * item.kv_heads,
        slot=2 * item.head_size,
        ends=text.outputs(number),
        window=window,
        angles=angles,
    )


def _is_cache(text: IrText, assign: int, attentions: Sequence[_Attention]) -> bool:
    return any(text.data(assign).get("variable_id") in item.variables for item in attentions)


def _add_cache(text: IrText, layers: Sequence[_Layer], place: int) -> tuple[Source, dict[str, object]]:
    """What reads a cache that is empty at first, and the variable."""
    planes, slot = len(layers) * layers[0].planes, layers[0].slot
    sizes = text.numbers(np.array([0, planes, 0, slot], np.int64))
    empty = text.add("Broadcast", [text.numbers(np.zeros(1, np.uint8)), sizes], {"mode": "numpy"}, version="opset3")
    variable: dict[str, object] = {
        "variable_id": f"shearling_cache.{place}",
        "variable_type": "u8",
        "variable_shape": f"?,{planes},?,{slot}",
    }
    return text.add("ReadValue", empty, variable, version="opset6")[0], variable


def _order(inputs: tuple[Any, Any, Any]) -> list[int]:
    """In which order queries (0), keys (1) and values (2) leave the layer before."""
    return sorted(range(len(inputs)), key=lambda part: int(inputs[part].get_index()))
