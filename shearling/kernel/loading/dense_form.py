"""Packed operators in the runtime's own form: its operators, and weights that it decompresses itself, as NNCF writes
them. The same integers, scales and norms; what unpacks them are layers that are constants once the text is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from .ir_text import FORMAT_VERSION, IrText, Source
from .packed_operator import PackedOperator, PackedPart, contradictions

NAME_SEPARATOR = " | "
"""Between the names of the nodes that one operator replaced, in its own name, and of the weights that a constant
bundles."""
NUMPY = {"auto_broadcast": "numpy"}


def can_unpack(operator: PackedOperator) -> bool:
    """Whether the runtime has a form for it: groups of equal size, and an activation that it knows."""
    plain = all(not part.group_size or part.columns % part.group_size == 0 for part in operator.parts)
    return plain and operator.data.get("activation", "silu") in ("silu", "gelu_erf", "gelu_tanh", "relu")


def unpack(text: IrText, operators: Iterable[PackedOperator]) -> None:
    """Replace packed operators in a text by what they stand for.

    Args:
        text: changed in place.
        operators: of it, as `find_operators` finds them; those that read one constant together.

    Raises:
        MalformedText: one lies about itself.
    """
    weights: dict[tuple[Source, int], Source] = {}
    replaced = list(operators)
    for operator in replaced:
        with contradictions():
            _unpack(text, operator, weights)
    text.remove(operator.number for operator in replaced)


def _unpack(text: IrText, operator: PackedOperator, weights: dict[tuple[Source, int], Source]) -> None:
    parts = _Parts(text, operator, weights)
    builder = {
        "SparseLinear": _linears,
        "SparseMLP": _mlp,
        "SparseLayer": _layer,
        "SparseHead": lambda parts: [parts.product(parts.inputs[0])],
        "SparseEmbedding": lambda parts: [parts.lookup(parts.inputs[0])],
    }[operator.kind]
    # What feeds an operator may be one that was replaced before it.
    parts.inputs = [source for source in text.inputs(operator.number) if source != operator.weights]
    outputs, computed = text.outputs(operator.number), builder(parts)
    if len(outputs) != len(computed):
        raise ValueError(f"it has {len(outputs)} outputs and computes {len(computed)}")
    for old, new in zip(outputs, computed, strict=True):
        text.replace(old, new)


class _Parts:
    """One operator, taken apart.

    Attributes:
        inputs: all but the weights.
    """

    def __init__(self, text: IrText, operator: PackedOperator, weights: dict[tuple[Source, int], Source]) -> None:
        self.operator = operator
        self.inputs: list[Source] = []
        self._text = text
        self._weights = weights
        self._names = text.name(operator.number).split(NAME_SEPARATOR)
        paths = text.name(operator.weights.layer).split(NAME_SEPARATOR)
        self._paths = paths if len(paths) == len(operator.parts) else [""] * len(operator.parts)
        self._matrices = list(operator.parts)
        self._vectors = list(operator.vectors)

    def node(
        self,
        kind: str,
        inputs: list[Source],
        data: Mapping[str, object] | None = None,
        *,
        version: str = "opset1",
        name: str | None = None,
    ) -> Source:
        """A layer of OpenVINO's, with one output."""
        return self._text.add(kind, inputs, data or {}, version=version, name=name)[0]

    def scalar(self, value: float) -> Source:
        """A number that is broadcast."""
        return self._text.numbers(np.full((1, 1, 1), value, np.float32))

    def axis(self, value: int) -> Source:
        """The number of an axis."""
        return self._text.numbers(np.array([value], np.int64))

    def vector(self) -> Source:
        """The next norm or bias."""
        offset, length = self._vectors.pop(0)
        return self._text.stored("f32", (1, 1, length), offset)

    def norm(self, x: Source, epsilon: float) -> Source:
        """RMS norm: gamma * x / sqrt(mean(x^2) + epsilon) with the next vector; or x itself."""
        if epsilon <= 0.0:
            return x
        squares = self.node("Power", [x, self.scalar(2.0)], NUMPY)
        mean = self.node("ReduceMean", [squares, self.axis(-1)], {"keep_dims": True})
        root = self.node("Sqrt", [self.node("Add", [mean, self.scalar(epsilon)], NUMPY)])
        inverse = self.node("Divide", [self.scalar(1.0), root], {**NUMPY, "m_pythondiv": True})
        normalized = self.node("Multiply", [x, inverse], NUMPY)
        return self.node("Multiply", [self.vector(), normalized], NUMPY)

    def product(self, x: Source) -> Source:
        """The product with the next matrix."""
        data = {"transpose_a": False, "transpose_b": True}
        return self.node("MatMul", [x, self._weight()], data, name=self.next_name())

    def lookup(self, tokens: Source) -> Source:
        """Rows of the next matrix."""
        axis = self._text.numbers(np.array([0], np.int64))
        return self.node(
            "Gather", [self._weight(), tokens, axis], {"batch_dims": 0}, version="opset8", name=self.next_name()
        )

    def add(self, residual: Source, x: Source, *, name: bool = True) -> Source:
        """Their sum."""
        return self.node("Add", [residual, x], NUMPY, name=self.next_name() if name else None)

    def next_name(self) -> str | None:
        """Of the next node that the operator replaced."""
        return self._names.pop(0) if self._names else None

    def _weight(self) -> Source:
        """The next matrix, decompressed by the graph; once for all operators that read it."""
        part, path = self._matrices.pop(0), self._paths.pop(0)
        place = (self.operator.weights, part.first)
        if place not in self._weights:
            self._weights[place] = self._decompressed(part, path or f"{self._text.name(self.operator.number)}/weight")
        return self._weights[place]

    def _decompressed(self, part: PackedPart, path: str) -> Source:
        values = self._unpacked(part, "values", path)
        if part.kind == "bf16":
            return self.node("Convert", [values], {"destination_type": "f32"}, name=path.removesuffix("_compressed"))
        kind = "f16" if part.half_scales else "f32"
        scales = self._unpacked(part, "scales", f"{path}/scale")
        converted = self.node("Convert", [values], {"destination_type": kind})
        weight = self.node("Multiply", [converted, scales], NUMPY, name=f"{path}/fq_weights_1")
        if part.kind == "int4" or part.groups > 1:
            shape = self._text.numbers(np.array([part.rows, part.columns], np.int64))
            weight = self.node("Reshape", [weight, shape], {"special_zero": False})
        if part.half_scales:
            name = f"{path}/fq_weights_1/convert"
            weight = self.node("Convert", [weight], {"destination_type": "f32"}, name=name)
        return weight

    def _unpacked(self, part: PackedPart, which: str, name: str) -> Source:
        data = {
            "element_type": "u8",
            "shape": [part.size],
            "offset": self.operator.offset + part.first,
            "size": part.size,
            "part": which,
            "format_version": FORMAT_VERSION,
        }
        return self._text.add("Const", [], data, name=name)[0]


def _linears(parts: _Parts) -> list[Source]:
    operator = parts.operator
    x = parts.norm(parts.inputs[0], operator.epsilon())
    outputs = [parts.product(x) for _ in operator.rows]
    if operator.flag("bias"):
        outputs = [parts.add(output, parts.vector(), name=False) for output in outputs]
    return [parts.add(parts.inputs[1], outputs[0])] if operator.flag("residual") else outputs


def _mlp(parts: _Parts) -> list[Source]:
    down = _feed_forward(parts, parts.inputs[0])
    return [parts.add(parts.inputs[0], down) if parts.operator.flag("residual") else down]


def _layer(parts: _Parts) -> list[Source]:
    operator = parts.operator
    projected = parts.norm(parts.product(parts.inputs[0]), operator.epsilon("projection_epsilon"))
    attention = parts.add(parts.inputs[1], projected)
    down = parts.norm(_feed_forward(parts, attention), operator.epsilon("mlp_epsilon"))
    y = parts.add(attention, down)
    following = parts.norm(y, operator.epsilon("next_epsilon"))
    outputs = [parts.product(following) for _ in operator.rows]
    if operator.flag("bias"):
        outputs = [parts.add(output, parts.vector(), name=False) for output in outputs]
    return [y, *outputs]


def _feed_forward(parts: _Parts, x: Source) -> Source:
    operator = parts.operator
    n = parts.norm(x, operator.epsilon())
    if not operator.flag("gated"):
        return parts.product(_activated(parts, parts.product(n)))
    gate, up = parts.product(n), parts.product(n)
    activated = _activated(parts, gate)
    return parts.product(parts.node("Multiply", [activated, up], NUMPY, name=parts.next_name()))


def _activated(parts: _Parts, x: Source) -> Source:
    activation = parts.operator.data["activation"]
    if activation == "silu":
        return parts.node("Swish", [x], version="opset4", name=parts.next_name())
    if activation == "relu":
        return parts.node("ReLU", [x], name=parts.next_name())
    mode = activation.removeprefix("gelu_").upper()
    return parts.node("Gelu", [x], {"approximation_mode": mode}, version="opset7", name=parts.next_name())
