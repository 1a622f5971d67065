"""A packed IR taken apart again: the same integers, scales and operators that any OpenVINO runs without an
extension.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from export.packing.packed_ir import NAME_SEPARATOR
from export.packing.stored_weight import decompressed, named
from shearling.errors import ArtefactCorrupt
from shearling.kernel.bundle import OPERATORS, WEIGHTS_PORT, split_bundle
from shearling.kernel.openvino_extension import RT_INFO
from shearling.kernel.packed_format import Matrix, unpack


def unpack_ir(ir: Any) -> None:
    """Undo `export.packing.packed_ir.pack_ir`, in place: every stored weight and scale comes back bit for bit.

    Args:
        ir: an `openvino.Model`, read with the extension.

    Raises:
        ArtefactCorrupt: a packed constant lies; names it.
    """
    builders = {
        "SparseLinear": _build_linears,
        "SparseMLP": _build_mlp,
        "SparseLayer": _build_layer,
        "SparseHead": lambda parts: [parts.product(parts.inputs[0])],
        "SparseEmbedding": lambda parts: [parts.lookup(parts.inputs[0])],
    }
    weights: dict[str, Any] = {}
    for node in ir.get_ordered_ops():
        if node.get_type_name() in OPERATORS:
            for old, new in zip(node.outputs(), builders[node.get_type_name()](_Parts(node, weights)), strict=True):
                names = old.get_names()
                for reader in old.get_target_inputs():
                    reader.replace_source_output(new)
                new.get_tensor().set_names(names)
    if ir.has_rt_info([RT_INFO[0]]):
        del ir.get_rt_info()[RT_INFO[0]]
    ir.validate_nodes_and_infer_types()


def read_packed(node: Any) -> dict[str, Matrix]:
    """Constant name -> matrix, of one operator, verified.

    Raises:
        ArtefactCorrupt: one lies; names it.
    """
    return dict(_Parts(node, {}).matrices)


class _Parts:
    """One operator, taken apart.

    Attributes:
        inputs: all but the weights.
        names: of the nodes that it replaced, in the order of the builders below.
        matrices: constant name and content, in the order of the bundle.
    """

    def __init__(self, node: Any, weights: dict[str, Any]) -> None:
        operator, port = node.get_type_name(), WEIGHTS_PORT[node.get_type_name()]
        constant = node.input_value(port).get_node()
        paths = constant.get_friendly_name().split(NAME_SEPARATOR)
        self.attributes: dict[str, Any] = node.get_attributes()
        self.inputs = [node.input_value(index) for index in range(len(node.inputs())) if index != port]
        self.names = node.get_friendly_name().split(NAME_SEPARATOR)
        parts = split_bundle(np.array(constant.data), operator, self.attributes)
        self.vectors = list(parts.vectors)
        self._weights = weights
        self.matrices = [(path, _unpack(packed, path)) for path, packed in zip(paths, parts.matrices, strict=True)]

    def norm(self, x: Any, epsilon: float) -> Any:
        """The norm with the next vector, or x itself."""
        return _norm(x, self.vectors.pop(0), epsilon) if epsilon > 0.0 else x

    def product(self, x: Any) -> Any:
        """The product with the next matrix."""
        from openvino import opset13

        return named(opset13.matmul(x, self._weight(), False, True), self.names.pop(0))

    def lookup(self, tokens: Any) -> Any:
        """Rows of the next matrix."""
        from openvino import opset13

        return named(opset13.gather(self._weight(), tokens, np.int32(0)), self.names.pop(0))

    def _weight(self) -> Any:
        """The next matrix, decompressed by the graph; once for all operators that read it."""
        path, matrix = self.matrices.pop(0)
        if path not in self._weights:
            self._weights[path] = decompressed(path, matrix)
        return self._weights[path]

    def add(self, residual: Any, x: Any) -> Any:
        """Their sum."""
        from openvino import opset13

        return named(opset13.add(residual, x), self.names.pop(0))


def _unpack(packed: Any, path: str) -> Matrix:
    try:
        return unpack(packed)
    except ArtefactCorrupt as error:
        raise ArtefactCorrupt(error.message, where=path, remedy="Export again") from None


def _build_linears(parts: _Parts) -> list[Any]:
    attributes = parts.attributes
    x = parts.norm(parts.inputs[0], attributes["norm_epsilon"])
    outputs = [parts.product(x) for _ in attributes["rows"]]
    return [parts.add(parts.inputs[1], outputs[0])] if attributes["residual"] else outputs


def _build_mlp(parts: _Parts) -> list[Any]:
    down = _feed_forward(parts, parts.inputs[0])
    return [parts.add(parts.inputs[0], down) if parts.attributes["residual"] else down]


def _build_layer(parts: _Parts) -> list[Any]:
    attention = parts.add(parts.inputs[1], parts.product(parts.inputs[0]))
    y = parts.add(attention, _feed_forward(parts, attention))
    following = parts.norm(y, parts.attributes["next_epsilon"])
    return [y, *(parts.product(following) for _ in parts.attributes["rows"])]


def _feed_forward(parts: _Parts, x: Any) -> Any:
    from openvino import opset13

    activation = parts.attributes["activation"]
    n = parts.norm(x, parts.attributes["norm_epsilon"])
    gate, up = parts.product(n), parts.product(n)
    activated = opset13.swish(gate) if activation == "silu" else opset13.gelu(gate, activation.removeprefix("gelu_"))
    between = opset13.multiply(named(activated, parts.names.pop(0)), up)
    return parts.product(named(between, parts.names.pop(0)))


def _norm(x: Any, gamma: Any, epsilon: float) -> Any:
    from openvino import opset13

    scalar = np.ones((1, 1, 1), np.float32)
    mean = opset13.reduce_mean(opset13.power(x, 2 * scalar), np.array([-1]), keep_dims=True)
    root = opset13.sqrt(opset13.add(mean, np.float32(epsilon) * scalar))
    normalized = opset13.multiply(x, opset13.divide(scalar, root))
    return opset13.multiply(gamma.reshape(1, 1, -1), normalized).output(0)
