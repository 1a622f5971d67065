"""Layers of a traced graph written again for layers that are like them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from shearling.model.layers import TransformerLayers

SCOPES = "pkg.torch.onnx.name_scopes"
"""Where the exporter notes of a node which modules it lies in."""

LAYER = r"(?:slice\([^)]*\)\.)?(\d+)"
"""Number of a layer behind the path of their list; some models take those of a part of it."""

OF_SIZES = {"Add", "Max", "Min", "Mul", "Squeeze"}
"""Operations that make sizes of sizes; the order of their inputs says nothing."""


@dataclass(frozen=True)
class TracePlan:
    """Which layers are traced.

    Attributes:
        transformer: the layers of the whole model.
        traced: how many of the first ones.
        models: of every other layer, two of the traced ones that are of its kind, the later one last.
    """

    transformer: TransformerLayers
    traced: int
    models: tuple[tuple[int, int], ...]


class UnexpectedGraph(Exception):
    """The graph cannot be continued by copies of its layers."""


def continue_layers(graph: Any, model: nn.Module, plan: TracePlan) -> None:
    """Write the layers behind the traced ones into their graph.

    Args:
        graph: an `onnx_ir.Graph` of the traced layers.
        model: whole.
        plan: see `plan_layers`.

    Raises:
        UnexpectedGraph: the layers of one kind have other graphs, or hand over more than one value.
    """
    known = TracedLayers(graph, plan, model)
    for first, second in sorted(set(plan.models)):
        known.compare(first, second)
    handed = known.handed_over[-1]
    users = [(node, index) for node, index in handed.uses() if node not in known.layer_of]
    for number, (_, second) in enumerate(plan.models, start=plan.traced):
        handed = _Copy(known, second, number, handed).written()
    for node, index in users:
        node.replace_input_with(index, handed)


class TracedLayers:
    """What each traced layer is in a graph.

    Args:
        graph: an `onnx_ir.Graph`.
        plan: see `plan_layers`.
        model: whole.

    Raises:
        UnexpectedGraph: a layer is not there, or hands over anything but one value to the next one.
    """

    def __init__(self, graph: Any, plan: TracePlan, model: nn.Module) -> None:
        self.graph = graph
        self.tensors: dict[str, torch.Tensor] = {
            **dict(model.named_parameters(remove_duplicate=False)),
            **dict(model.named_buffers(remove_duplicate=False)),
        }
        self.layers_path = plan.transformer.layers_path
        self.sizes = {str(size) for value in graph.inputs for size in value.shape}
        # Constants are made where one is used first, and used again wherever it is needed; so are sizes.
        shared = share_sizes(graph)
        found = {node: self._layer(node) for node in graph if node.op_type != "Constant" and node not in shared}
        self.layer_of: dict[Any, int] = {node: layer for node, layer in found.items() if layer is not None}
        self.handed_over = [self._handed_over(layer, last=layer == plan.traced - 1) for layer in range(plan.traced)]
        users = {user for user in self.handed_over[-1].consumers() if user not in self.layer_of}
        self.behind = next(node for node in graph if node in users)
        """The first node behind all layers."""
        self.own: dict[int, set[Any]] = {}
        """The nodes of a layer that was compared with one before it."""

    def _layer(self, node: Any) -> int | None:
        """Number of the layer that a node lies in."""
        found = re.search(rf"'model\.{re.escape(self.layers_path)}\.{LAYER}[.']", node.metadata_props.get(SCOPES, ""))
        return int(found[1]) if found else None

    def _handed_over(self, layer: int, *, last: bool) -> Any:
        """What those behind a layer use of it."""
        found = {
            output: readers
            for node, place in self.layer_of.items()
            if place == layer
            for output in node.outputs
            if (readers := {self.layer_of.get(user) for user in output.consumers()} - {layer})
        }
        if list(found.values()) != [{None if last else layer + 1}]:
            raise UnexpectedGraph(f"layer {layer} hands over other than one value to the next")
        return next(iter(found))

    def named(self, value: Any, layer: int, other: int) -> str | None:
        """The name in another layer of a weight or a part of the cache; None for what is not the layer's."""
        if value.is_initializer() and value.name not in self.tensors:
            # A constant that lies beside the graph.
            return None
        for start in (self.layers_path, "past_key_values", "present"):
            if value.name.startswith(f"{start}.{layer}."):
                return f"{start}.{other}." + value.name.removeprefix(f"{start}.{layer}.")
        return None

    def compare(self, first: int, second: int) -> None:
        """Check that two layers are the same but for their weights, their caches and what they are given.

        Raises:
            UnexpectedGraph: they are not.
        """
        outputs = {value.name: value for value in self.graph.outputs}
        pairs = [
            (value, outputs[name])
            for value in self.graph.outputs
            if (name := self.named(value, first, second)) is not None
        ]
        likeness = _Likeness(self, first, second)
        likeness.require([(self.handed_over[first], self.handed_over[second]), *pairs])
        self.own[second] = likeness.own


class _Likeness:
    """Values of a layer, each with the one that it stands for in a later layer.

    Args:
        known: the layers.
        first: number of the one.
        second: of the later one.
    """

    def __init__(self, known: TracedLayers, first: int, second: int) -> None:
        self._known, self._first, self._second = known, first, second
        self._stands: dict[Any, Any] = {}
        if first:
            self._stands[known.handed_over[second - 1]] = known.handed_over[first - 1]
        self.own: set[Any] = set()
        """Nodes that are there for the later layer alone."""

    def require(self, pairs: list[tuple[Any, Any]]) -> None:
        """Check that values stand for each other: they are made in the same way, of values that do."""
        while pairs:
            one, other = pairs.pop()
            if one is other:
                continue
            if one is None or other is None or self._stands.setdefault(other, one) is not one:
                raise UnexpectedGraph(f"layer {self._second} takes something else than layer {self._first}")
            pairs.extend(self._sources(one, other))

    def _sources(self, one: Any, other: Any) -> list[tuple[Any, Any]]:
        """What two values are made of, where it has yet to be looked at."""
        makers = one.producer(), other.producer()
        if other is self._known.handed_over[self._second - 1] or makers[1] in self.own:
            return []
        if None in makers:
            if makers != (None, None) or not self._same_place(one, other):
                raise UnexpectedGraph(f"{one.name} is not {other.name}")
            return []
        if one.index() != other.index() or not _same_operation(*makers):
            raise UnexpectedGraph(f"{makers[0].name} is not {makers[1].name}")
        if makers[1].op_type == "Constant":
            return []
        self.own.add(makers[1])
        return [
            *zip(makers[0].inputs, makers[1].inputs, strict=True),
            *zip(makers[0].outputs, makers[1].outputs, strict=True),
        ]

    def _same_place(self, one: Any, other: Any) -> bool:
        """Whether inputs or weights of the graph are what their layer has there, or constants of one value."""
        if one.is_initializer() != other.is_initializer():
            return False
        if one.is_initializer() and not {one.name, other.name} & self._known.tensors.keys():
            return _same_tensor(one.const_value, other.const_value)
        return self._known.named(one, self._first, self._second) == other.name


def share_sizes(graph: Any) -> set[Any]:
    """Ask for each size of the inputs once: those of one name are equal, and the exporter takes any of them.

    Args:
        graph: an `onnx_ir.Graph`.

    Returns:
        The nodes that make sizes.
    """
    made: dict[Any, Any] = {}
    sizes: set[Any] = set()
    for node in list(graph):
        question = _size_asked_for(node, sizes)
        if question is None:
            continue
        first = made.setdefault(question, node)
        if first is node:
            sizes.add(node)
        else:
            node.outputs[0].replace_all_uses_with(first.outputs[0])
            graph.remove(node, safe=True)
    return sizes


def _size_asked_for(node: Any, sizes: set[Any]) -> object:
    """Equal for nodes that make the same size; None for what makes none."""
    if node.outputs[0].is_graph_output():
        return None
    if node.op_type in OF_SIZES:
        makers = [value and value.producer() for value in node.inputs]
        others = [maker for maker in makers if maker not in sizes]
        made = len(others) < len(makers) and all(maker and maker.op_type == "Constant" for maker in others)
        return (node.op_type, *sorted(map(id, node.inputs))) if made else None
    if node.op_type != "Shape" or not node.inputs[0].is_graph_input():
        return None
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", None)
    sizes_asked_for = tuple(str(size) for size in node.inputs[0].shape[start:end])
    return None if "None" in sizes_asked_for else ("Shape", *sizes_asked_for)


def _same_operation(one: Any, other: Any) -> bool:
    return (
        one.op_identifier() == other.op_identifier()
        and len(one.inputs) == len(other.inputs)
        and len(one.outputs) == len(other.outputs)
        and one.attributes.keys() == other.attributes.keys()
        and all(_same_attribute(value, other.attributes[name]) for name, value in one.attributes.items())
    )


def _same_attribute(one: Any, other: Any) -> bool:
    import onnx_ir

    kinds = onnx_ir.AttributeType
    if one.type != other.type or one.type in (kinds.GRAPH, kinds.GRAPHS):
        return False
    if one.type == kinds.TENSOR:
        return _same_tensor(one.value, other.value)
    return bool(one.value == other.value)


def _same_tensor(one: Any, other: Any) -> bool:
    return one.dtype == other.dtype and np.array_equal(one.numpy(), other.numpy())


class _Copy:
    """A traced layer written again for another.

    Args:
        known: the traced layers.
        source: number of the one.
        number: of the other.
        given: what the layer before it hands over.
    """

    def __init__(self, known: TracedLayers, source: int, number: int, given: Any) -> None:
        self._known, self._source, self._number = known, source, number
        self._values: dict[Any, Any] = {known.handed_over[source - 1]: given}

    def written(self) -> Any:
        """Put the layer into the graph; what it hands over comes back."""
        graph, own = self._known.graph, self._known.own[self._source]
        self._place(graph.inputs)
        graph.insert_before(self._known.behind, [self._node(node) for node in graph if node in own])
        self._place(graph.outputs)
        return self._values[self._known.handed_over[self._source]]

    def _place(self, values: Any) -> None:
        """Put copies of the inputs or outputs of the source behind those of the layer before."""
        copied = [self._value(value) for value in values if self._name(value) is not None]
        if copied:
            before = self._number - 1
            own = [index for index, value in enumerate(values) if self._known.named(value, before, before) is not None]
            values[own[-1] + 1 : own[-1] + 1] = copied

    def _node(self, node: Any) -> Any:
        import onnx_ir

        copy = onnx_ir.Node(
            node.domain,
            node.op_type,
            [None if value is None else self._value(value) for value in node.inputs],
            node.attributes.values(),
            overload=node.overload,
            version=node.version,
            outputs=[self._new(value, self._name(value) or f"{value.name}.{self._number}") for value in node.outputs],
            name=f"{node.name}.{self._number}",
        )
        self._values |= dict(zip(node.outputs, copy.outputs, strict=True))
        return copy

    def _value(self, value: Any) -> Any:
        """What stands for a value of the source."""
        if value in self._values:
            return self._values[value]
        name = self._name(value)
        if value.producer() is not None or name is None:
            return value
        self._values[value] = copy = self._new(value, name)
        if value.is_initializer():
            copy.const_value = self._weight(name, value.const_value)
            self._known.graph.register_initializer(copy)
        return copy

    def _name(self, value: Any) -> str | None:
        return self._known.named(value, self._source, self._number)

    def _new(self, value: Any, name: str) -> Any:
        import onnx_ir

        shape = None if value.shape is None else onnx_ir.Shape([self._size(size) for size in value.shape])
        return onnx_ir.Value(name=name, shape=shape, type=value.type)

    def _size(self, size: Any) -> Any:
        """A size under a name of this layer, unless the inputs have it: not every expert has as many tokens."""
        if isinstance(size, int) or size.value is None:
            return size
        known = self._known.sizes
        return re.sub(
            r"[A-Za-z_]\w*", lambda name: name[0] if name[0] in known else f"{name[0]}_{self._number}", size.value
        )

    def _weight(self, name: str, source: Any) -> Any:
        """A parameter as the graph holds that of the source."""
        import onnx_ir

        made = onnx_ir.tensor(self._known.tensors[name].detach().contiguous(), name=name)
        if made.dtype != source.dtype or made.shape != source.shape:
            raise UnexpectedGraph(f"{name} is not what the graph holds")
        return made
