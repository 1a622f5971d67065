"""A small hand for writing ONNX graphs: nodes whose outputs are returned, and constants by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir

CONTRIB = "com.microsoft"
"""Domain of ONNX Runtime's own operators."""
OPSET = 23
"""The first with RMSNormalization."""
IR_VERSION = 10


class GraphWriter:
    """Writes a graph from its inputs to its outputs.

    Attributes:
        dtype: of numpy, in which the graph computes: float32 or float16.
    """

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self.dtype = np.dtype(dtype)
        self._inputs: list[onnx_ir.Value] = []
        self._outputs: list[onnx_ir.Value] = []
        self._nodes: list[onnx_ir.Node] = []
        self._initializers: dict[str, onnx_ir.Value] = {}

    def input(self, name: str, shape: Sequence[int | str], dtype: npt.DTypeLike | None = None) -> Any:
        """A new input.

        Args:
            name: of it.
            shape: sizes, and names of those that may change.
            dtype: of numpy; None is that of the graph.
        """
        self._inputs.append(self._typed(onnx_ir.Value(name=name), shape, self.dtype if dtype is None else dtype))
        return self._inputs[-1]

    def output(self, value: Any, name: str, shape: Sequence[int | str]) -> None:
        """Make a value an output."""
        value.name = name
        self._outputs.append(self._typed(value, shape, self.dtype))

    def constant(self, name: str, array: npt.NDArray[Any]) -> Any:
        """An initializer; the same name gives the same one."""
        if name not in self._initializers:
            array = np.ascontiguousarray(array)
            value = onnx_ir.Value(name=name, const_value=onnx_ir.tensor(array, name=name))
            self._initializers[name] = self._typed(value, array.shape, array.dtype)
        return self._initializers[name]

    def number(self, name: str, array: npt.NDArray[Any]) -> Any:
        """The same in the type that the graph computes in."""
        return self.constant(name, array.astype(self.dtype, copy=False))

    def node(
        self,
        operator: str,
        inputs: Sequence[Any],
        name: str,
        attributes: Mapping[str, Any] | None = None,
        *,
        domain: str = "",
    ) -> Any:
        """A node of one output, which is returned."""
        return self.nodes(operator, inputs, name, attributes, domain=domain, outputs=1)[0]

    def nodes(
        self,
        operator: str,
        inputs: Sequence[Any],
        name: str,
        attributes: Mapping[str, Any] | None = None,
        *,
        outputs: int,
        domain: str = "",
    ) -> Sequence[Any]:
        """A node of several outputs, which are returned; an input may be None."""
        node = onnx_ir.node(operator, inputs, dict(attributes or {}), domain=domain, num_outputs=outputs, name=name)
        for place, value in enumerate(node.outputs):
            value.name = f"{name}/output_{place}"
        self._nodes.append(node)
        return node.outputs

    def finish(self, name: str) -> onnx_ir.Model:
        """The model that was written."""
        graph = onnx_ir.Graph(
            self._inputs,
            self._outputs,
            nodes=self._nodes,
            initializers=list(self._initializers.values()),
            opset_imports={"": OPSET, CONTRIB: 1},
            name=name,
        )
        return onnx_ir.Model(graph, ir_version=IR_VERSION, producer_name="shearling")

    @staticmethod
    def _typed(value: onnx_ir.Value, shape: Sequence[int | str], dtype: npt.DTypeLike) -> onnx_ir.Value:
        value.shape = onnx_ir.Shape(shape)
        value.dtype = onnx_ir.DataType.from_numpy(np.dtype(dtype))
        return value
