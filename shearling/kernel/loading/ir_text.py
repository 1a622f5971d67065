"""The text of an IR as a graph that can be changed.

A changed graph that OpenVINO wrote itself would be a second copy of the weights. Its text alone names the places of the
constants in the file that is there already.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

OPERATOR_SET = "shearling"
FORMAT_VERSION = 1
EDGE = ("from-layer", "from-port", "to-layer", "to-port")
Place = tuple[int, int]
"""An input: number of the layer, and port."""
PRECISION = "FP32"
"""Of the ports of new layers: OpenVINO insists on one, and finds the types itself."""
OPENING = b"<?xml version='1.0'?>\n"


class MalformedText(ValueError):
    """The text is not that of an IR."""


class Source(NamedTuple):
    """An output of a layer.

    Attributes:
        layer: its number.
        port: as the text numbers it, behind the inputs.
    """

    layer: int
    port: int


class IrText:
    """Layers and edges of an IR.

    Args:
        content: of the file, or nothing for a graph without layers.

    Raises:
        MalformedText: it is no IR.
    """

    def __init__(self, content: bytes = b'<net name="part" version="11"><layers/><edges/></net>') -> None:
        if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
            raise MalformedText("it declares entities")
        try:
            self._root = ElementTree.fromstring(content)
            self._layers = {int(layer.attrib["id"]): layer for layer in self._element("layers")}
            self._edges: dict[Place, Source] = {}
            self._readers: dict[Source, set[Place]] = {}
            for edge in self._element("edges"):
                numbers = (int(edge.attrib[name]) for name in EDGE)
                source, place = Source(next(numbers), next(numbers)), (next(numbers), next(numbers))
                self._connect(place, source)
        except (ElementTree.ParseError, KeyError, ValueError) as error:
            raise MalformedText(f"it is no IR: {error}") from error
        if any(source.layer not in self._layers for source in self._readers):
            raise MalformedText("an edge comes from no layer")
        self._names: dict[str, int | None] = {}
        for number, layer in self._layers.items():
            name = layer.get("name", "")
            self._names[name] = None if name in self._names else number
        self._next = max(self._layers, default=-1) + 1

    def _connect(self, place: Place, source: Source) -> None:
        before = self._edges.get(place)
        if before is not None:
            self._readers[before].discard(place)
        self._edges[place] = source
        self._readers.setdefault(source, set()).add(place)

    def _element(self, tag: str) -> ElementTree.Element:
        found = self._root.find(tag)
        if found is None:
            raise MalformedText(f"it has no {tag}")
        return found

    def layers_of(self, kinds: Iterable[str]) -> list[int]:
        """Numbers of the layers of these types, in the order of the file."""
        wanted = set(kinds)
        return [number for number, layer in self._layers.items() if layer.get("type") in wanted]

    def named(self, name: str, kind: str) -> int:
        """The layer of a name and type.

        Raises:
            MalformedText: there is none, or another one of that name.
        """
        number = self._names.get(name)
        if number is None or self._layers[number].get("type") != kind:
            raise MalformedText(f"not one {kind} is called {name!r}")
        return number

    def name(self, number: int) -> str:
        """Of a layer."""
        return self._layers[number].get("name", "")

    def kind(self, number: int) -> str:
        """Type of a layer."""
        return self._layers[number].get("type", "")

    def data(self, number: int) -> dict[str, str]:
        """Attributes of a layer."""
        data = self._layers[number].find("data")
        return {} if data is None else dict(data.attrib)

    def set(self, number: int, name: str, value: object) -> None:
        """Give a layer an attribute."""
        data = self._layers[number].find("data")
        if data is None:
            raise MalformedText(f"{self.name(number)!r} has no attributes")
        data.set(name, _written(value))

    def inputs(self, number: int) -> list[Source]:
        """What feeds a layer, in the order of its inputs.

        Raises:
            MalformedText: something does not.
        """
        ports = [int(port.get("id", -1)) for port in self._layers[number].findall("input/port")]
        try:
            return [self._edges[number, port] for port in ports]
        except KeyError as error:
            raise MalformedText(f"an input of {self.name(number)!r} is fed by nothing") from error

    def outputs(self, number: int) -> list[Source]:
        """The outputs of a layer."""
        return [Source(number, int(port.get("id", -1))) for port in self._layers[number].findall("output/port")]

    def source(self, output: Any) -> Source:
        """The place of an `openvino.Output` of the model that was read from this text."""
        node = output.get_node()
        kind = node.get_type_name()
        outputs = self.outputs(self.named(node.get_friendly_name(), "Const" if kind == "Constant" else kind))
        return outputs[output.get_index()]

    def add(
        self,
        kind: str,
        inputs: Sequence[Source],
        data: Mapping[str, object],
        *,
        version: str = OPERATOR_SET,
        outputs: int = 1,
        name: str | None = None,
    ) -> list[Source]:
        """Add a layer; gives its outputs.

        Args:
            kind: its type.
            inputs: what feeds it.
            data: its attributes.
            version: operator set that the type belongs to.
            outputs: how many it has.
            name: as another layer may be called too; None makes one.
        """
        number, self._next = self._next, self._next + 1
        attributes = {"id": str(number), "name": name or f"{kind}_{number}", "type": kind, "version": version}
        layer = ElementTree.SubElement(self._element("layers"), "layer", attributes)
        if data:
            ElementTree.SubElement(layer, "data", {key: _written(value) for key, value in data.items()})
        if inputs:
            ports = ElementTree.SubElement(layer, "input")
            for port, source in enumerate(inputs):
                ElementTree.SubElement(ports, "port", {"id": str(port), "precision": PRECISION})
                self._connect((number, port), source)
        if outputs:
            ports = ElementTree.SubElement(layer, "output")
            for port in range(len(inputs), len(inputs) + outputs):
                ElementTree.SubElement(ports, "port", {"id": str(port), "precision": PRECISION})
        self._layers[number] = layer
        return self.outputs(number)

    def numbers(self, values: npt.NDArray[Any]) -> Source:
        """A constant that stands in the text.

        Args:
            values: of at least one axis.
        """
        kinds = {"float32": "f32", "int64": "i64", "int32": "i32", "uint8": "u8"}
        return self.add(
            "Numbers",
            [],
            {
                "element_type": kinds[values.dtype.name],
                "shape": values.shape,
                "content": np.ascontiguousarray(values).tobytes().hex(),
                "format_version": FORMAT_VERSION,
            },
        )[0]

    def stored(self, kind: str, shape: Sequence[int], offset: int) -> Source:
        """A constant that stands in the weights file.

        Args:
            kind: f32 or u8.
            shape: of the constant.
            offset: its first byte in the file.
        """
        size = int(np.prod(shape)) * {"f32": 4, "u8": 1}[kind]
        data = {"element_type": kind, "shape": shape, "offset": offset, "size": size}
        return self.add("Const", [], data, version="opset1")[0]

    def copy_of(self, other: IrText, number: int, inputs: Sequence[Source]) -> list[Source]:
        """A layer of another text, fed by what is here.

        Raises:
            MalformedText: it has another number of inputs.
        """
        layer = copy.deepcopy(other._layers[number])
        fresh, self._next = self._next, self._next + 1
        layer.set("id", str(fresh))
        ports = [int(port.get("id", -1)) for port in layer.findall("input/port")]
        if len(ports) != len(inputs):
            raise MalformedText(f"{layer.get('name', '')!r} has {len(ports)} inputs, not {len(inputs)}")
        for port, source in zip(ports, inputs, strict=True):
            self._connect((fresh, port), source)
        self._element("layers").append(layer)
        self._layers[fresh] = layer
        self._names[layer.get("name", "")] = None if layer.get("name", "") in self._names else fresh
        return self.outputs(fresh)

    def replace(self, old: Source, new: Source) -> None:
        """Let all that is fed by one output be fed by another, under the same tensor names."""
        for place in list(self._readers.get(old, ())):
            self._connect(place, new)
        names = self._port(old).attrib.pop("names", None)
        if names is not None:
            self._port(new).set("names", names)

    def _port(self, source: Source) -> ElementTree.Element:
        for port in self._layers[source.layer].findall("output/port"):
            if port.get("id") == str(source.port):
                return port
        raise MalformedText(f"{self.name(source.layer)!r} has no output {source.port}")

    def remove(self, numbers: Iterable[int]) -> None:
        """Take layers out that feed nothing."""
        for number in numbers:
            del self._layers[number]

    def forget(self, *path: str) -> None:
        """Drop what is said about the model under a name."""
        *outer, last = path
        parent = self._root.find("/".join(["rt_info", *outer]))
        found = None if parent is None else parent.find(last)
        if parent is not None and found is not None:
            parent.remove(found)

    def to_bytes(self) -> bytes:
        """The text, of all that the results, the variables and the parameters need."""
        feeding: dict[int, list[int]] = {}
        for (layer, _), source in self._edges.items():
            feeding.setdefault(layer, []).append(source.layer)
        waiting = self.layers_of(("Result", "Assign", "Parameter"))
        needed: set[int] = set()
        while waiting:
            number = waiting.pop()
            if number not in needed:
                needed.add(number)
                waiting += feeding.get(number, [])
        root = ElementTree.Element("net", self._root.attrib)
        layers = ElementTree.SubElement(root, "layers")
        layers.extend(layer for number, layer in self._layers.items() if number in needed)
        edges = ElementTree.SubElement(root, "edges")
        for (layer, port), source in self._edges.items():
            if layer in needed:
                places = (source.layer, source.port, layer, port)
                ElementTree.SubElement(edges, "edge", dict(zip(EDGE, map(str, places), strict=True)))
        root.extend(child for child in self._root if child.tag not in ("layers", "edges"))
        return OPENING + ElementTree.tostring(root)


def _written(value: object) -> str:
    """An attribute as OpenVINO writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return ", ".join(_written(item) for item in value)
    return repr(float(value)) if isinstance(value, float) else str(value)
