"""The matrix products of an IR whose weights are stored compressed, and what lies around them that one operator can
do with them.

    bf16    Constant bf16 -> Convert f32 -> MatMul
    int8    Constant i8 [out, in] -> Convert f16 -> Multiply [out, 1] -> Convert f32 -> MatMul
    int4    Constant i4 [out, groups, group] -> Convert f16 -> Multiply [out, groups, 1] -> Reshape [out, in] ->
    Convert f32 -> MatMul

are the forms that `export.number_formats` and NNCF write.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

PackableFormat = Literal["bf16", "int8", "int4"]
Activation = Literal["silu", "gelu_erf", "gelu_tanh"]

STORAGE: dict[str, PackableFormat] = {"bf16": "bf16", "i8": "int8", "i4": "int4"}
DECOMPRESSION = ("Convert", "Multiply", "Reshape")


@dataclass(frozen=True)
class Product:
    """y = x Wᵀ with a weight that the graph decompresses.

    Attributes:
        path: of the module, from the name of the constant.
        shape: [out, in] of the weight.
        matmul: the node; its first input is x.
        constant: the stored weight.
        scale: constant of one scale a row or a group; None for bf16.
        shared: the weight is read by other nodes too, such as an embedding.
    """

    path: str
    storage: PackableFormat
    shape: tuple[int, int]
    matmul: Any
    constant: Any
    scale: Any | None
    shared: bool


@dataclass(frozen=True)
class Gated:
    """down(activation(gate x) * (up x)), each step read by the next alone.

    Attributes:
        between: nodes from gate and up to down: the activation and the product.
    """

    gate: Product
    up: Product
    down: Product
    activation: Activation
    between: tuple[Any, Any]


@dataclass(frozen=True)
class Norm:
    """gamma * x / sqrt(mean(x²) + epsilon).

    Attributes:
        scaled: the node that ends it.
        entry: an input of one of its nodes that reads x.
        gamma: [columns] float32.
    """

    scaled: Any
    entry: Any
    gamma: npt.NDArray[np.float32]
    epsilon: float

    @property
    def x(self) -> Any:
        """The output that is normalized, whatever feeds it by now."""
        return self.entry.get_source_output()


@dataclass(frozen=True)
class Residual:
    """product + other, or norm(product) + other.

    Attributes:
        add: the node.
        entry: its input that reads the other tensor.
        norm: that goes before it.
    """

    add: Any
    entry: Any
    norm: Norm | None

    @property
    def other(self) -> Any:
        """The output that is added, whatever feeds it by now."""
        return self.entry.get_source_output()


@dataclass(frozen=True)
class OutputHead:
    """The product that the logits come from.

    Attributes:
        lookups: Gather nodes that read rows of the same weight by their number: a tied embedding.
    """

    product: Product
    lookups: tuple[Any, ...]


def module_path(name: str) -> str:
    """Path of the module that a weight constant belongs to.

    OpenVINO puts `self.` before torch's names, and `_compressed` behind those of 16-bit constants; a module that
    keeps its ranks apart holds the frozen weight in `base`.
    """
    return name.removeprefix("self.").removesuffix("_compressed").removesuffix(".weight").removesuffix(".base")


def find_products(ir: Any) -> list[Product]:
    """Every product with a compressed weight, in the order of execution."""
    found = (_product(node) for node in ir.get_ordered_ops() if node.get_type_name() == "MatMul")
    return [product for product in found if product is not None]


def group_by_input(products: Sequence[Product]) -> list[list[Product]]:
    """Products that read the same tensor together, in order of the first of each group."""
    groups: dict[tuple[str, int], list[Product]] = defaultdict(list)
    for product in products:
        source = product.matmul.input_value(0)
        groups[source.get_node().get_friendly_name(), source.get_index()].append(product)
    return list(groups.values())


def find_gated(products: Sequence[Product]) -> list[Gated]:
    """Every gated feed-forward layer whose three matrices are among `products`."""
    by_name = {product.matmul.get_friendly_name(): product for product in products}
    found = (_gated(gate, by_name) for gate in products)
    return [gated for gated in found if gated is not None]


def find_norm(products: Sequence[Product]) -> Norm | None:
    """The RMS norm that all of these products read, if nothing else reads more of it than its shape."""
    scaled = source(products[0].matmul, 0)
    readers = {reader.get_node().get_friendly_name() for reader in readers_of(scaled.output(0))}
    if readers != {product.matmul.get_friendly_name() for product in products}:
        return None
    return _norm(scaled, products[0].shape[1])


def _norm(scaled: Any, width: int) -> Norm | None:
    """The RMS norm of so many columns that a node ends."""
    gamma, normalized = _constant_and_other(scaled)
    if gamma is None or normalized is None or gamma.size != width:
        return None
    divide = next(
        (source(normalized, port) for port in (0, 1) if source(normalized, port).get_type_name() == "Divide"), None
    )
    if normalized.get_type_name() != "Multiply" or divide is None or len(normalized.output(0).get_target_inputs()) != 1:
        return None
    entry = next(normalized.input(port) for port in (0, 1) if source(normalized, port) != divide)
    epsilon = _rms_epsilon(divide, entry.get_source_output())
    return None if epsilon is None else Norm(scaled, entry, gamma.reshape(-1).astype(np.float32), epsilon)


def find_residual(product: Product) -> Residual | None:
    """The addition of another tensor of the same shape, if it is all that reads the product, or its norm."""
    norm = _norm_behind(product)
    end = product.matmul if norm is None else norm.scaled
    add = only_reader(end)
    if add is None or add.get_type_name() != "Add":
        return None
    entry = next((add.input(port) for port in (0, 1) if source(add, port) != end), None)
    if entry is None or source(add, entry.get_index()).get_type_name() == "Constant":
        return None
    fits = entry.get_partial_shape() == product.matmul.get_output_partial_shape(0)
    return Residual(add, entry, norm) if fits else None


def _norm_behind(product: Product) -> Norm | None:
    """The RMS norm that is all that reads a product."""
    output = product.matmul.output(0)
    readers = [reader.get_node() for reader in output.get_target_inputs()]
    scaled = next((only_reader(node) for node in readers if node.get_type_name() == "Multiply"), None)
    norm = None if scaled is None else _norm(scaled, product.shape[0])
    # Two nodes of the norm read it.
    return norm if norm is not None and norm.x == output and len(readers) == 2 else None


def find_head(ir: Any, products: Sequence[Product]) -> OutputHead | None:
    """The vocabulary projection of a decoder, unless something else than an embedding reads its weight too.

    None either where the logits are more than the product (a scale, a soft cap), or its operand is transposed:
    OpenVINO would fuse that into it, as into any MatMul, and read our weights as numbers.
    """
    logits = source(ir.get_results()[0], 0)
    product = next((product for product in products if product.matmul == logits), None)
    if (
        product is None
        or len(logits.output(0).get_target_inputs()) != 1
        or source(logits, 0).get_type_name() == "Transpose"
    ):
        return None
    lookups: list[Any] = []
    inner = {product.matmul.get_friendly_name()}
    weight = source(product.matmul, 1)
    while True:
        for reader in (reader.get_node() for reader in weight.output(0).get_target_inputs()):
            if reader.get_friendly_name() in inner:
                continue
            if not _is_lookup(reader, weight):
                return None
            lookups.append(reader)
        if weight.get_type_name() == "Constant":
            return OutputHead(product, tuple(lookups))
        inner.add(weight.get_friendly_name())
        weight = source(weight, 0)


def reads_shape(reader: Any) -> bool:
    """Whether an input takes the shape alone, which a norm does not change."""
    return bool(reader.get_node().get_type_name() == "ShapeOf")


def readers_of(output: Any) -> list[Any]:
    """Inputs that read an output for more than its shape."""
    return [reader for reader in output.get_target_inputs() if not reads_shape(reader)]


def source(node: Any, port: int) -> Any:
    """The node that feeds an input."""
    return node.input_value(port).get_node()


def only_reader(node: Any) -> Any | None:
    """The node that reads the first output, if it is one alone."""
    readers = list(node.output(0).get_target_inputs())
    return readers[0].get_node() if len(readers) == 1 else None


def _product(matmul: Any) -> Product | None:
    attributes = matmul.get_attributes()
    if attributes["transpose_a"] or not attributes["transpose_b"] or len(matmul.get_input_partial_shape(1)) != 2:
        return None
    node, scale, shared = source(matmul, 1), None, False
    while node.get_type_name() in DECOMPRESSION:
        shared |= len(node.output(0).get_target_inputs()) != 1
        if node.get_type_name() == "Multiply":
            scale = source(node, 1)
        node = source(node, 0)
    storage = STORAGE.get(node.get_element_type().get_type_name()) if node.get_type_name() == "Constant" else None
    if (
        storage is None
        or (storage == "bf16") != (scale is None)
        or (scale is not None and scale.get_type_name() != "Constant")
    ):
        return None
    out, width = (int(size) for size in matmul.get_input_shape(1))
    shared |= len(node.output(0).get_target_inputs()) != 1
    return Product(module_path(node.get_friendly_name()), storage, (out, width), matmul, node, scale, shared)


def _is_lookup(node: Any, weight: Any) -> bool:
    if node.get_type_name() != "Gather" or source(node, 0) != weight or node.get_attributes().get("batch_dims", 0) != 0:
        return False
    if node.get_input_element_type(1).get_type_name() not in ("i32", "i64"):
        return False
    # Only as wide as the rows that a product reads, not a part of the decompression.
    return (
        len(weight.get_output_partial_shape(0)) == 2
        and weight.get_output_element_type(0).is_real()
        and _scalar(source(node, 2)) == 0.0
    )


def _gated(gate: Product, by_name: dict[str, Product]) -> Gated | None:
    activation = only_reader(gate.matmul)
    kind = _activation(activation)
    multiply = only_reader(activation) if kind else None
    if kind is None or multiply is None or multiply.get_type_name() != "Multiply":
        return None
    up = next(
        (
            by_name.get(source(multiply, port).get_friendly_name())
            for port in (0, 1)
            if source(multiply, port) != activation
        ),
        None,
    )
    if (
        up is None
        or only_reader(up.matmul) is None
        or up.shape != gate.shape
        or up.matmul.input_value(0) != gate.matmul.input_value(0)
    ):
        return None
    reader = only_reader(multiply)
    down = by_name.get(reader.get_friendly_name()) if reader is not None else None
    if down is None or down.shape != gate.shape[::-1]:
        return None
    return Gated(gate, up, down, kind, (activation, multiply))


def _activation(node: Any | None) -> Activation | None:
    if node is None:
        return None
    kind = node.get_type_name()
    if kind == "Swish" and (len(node.inputs()) == 1 or _scalar(source(node, 1)) == 1.0):
        return "silu"
    if kind == "Gelu":
        return "gelu_tanh" if node.get_attributes()["approximation_mode"].lower() == "tanh" else "gelu_erf"
    return None


def _rms_epsilon(divide: Any, x: Any) -> float | None:
    """Epsilon of 1 / sqrt(mean(x^2) + epsilon), or None if this is something else."""
    one, root = _scalar(source(divide, 0)), source(divide, 1)
    if one != 1.0 or root.get_type_name() != "Sqrt" or source(root, 0).get_type_name() != "Add":
        return None
    epsilon, mean = _constant_and_other(source(root, 0))
    if epsilon is None or mean is None or mean.get_type_name() != "ReduceMean" or epsilon.size != 1:
        return None
    axes, power = _scalar(source(mean, 1)), source(mean, 0)
    if (
        axes != -1.0
        or power.get_type_name() != "Power"
        or _scalar(source(power, 1)) != 2.0
        or power.input_value(0) != x
    ):
        return None
    return float(epsilon.reshape(()))


def _scalar(node: Any) -> float | None:
    if node.get_type_name() != "Constant" or node.get_output_size() != 1 or node.data.size != 1:
        return None
    return float(node.data.reshape(()))


def _constant_and_other(node: Any) -> tuple[npt.NDArray[Any] | None, Any]:
    """Value of the one input that is a constant, and the node of the other input."""
    if len(node.inputs()) != 2:
        return None, None
    for port in (0, 1):
        if source(node, port).get_type_name() == "Constant" and source(node, 1 - port).get_type_name() != "Constant":
            return source(node, port).data, source(node, 1 - port)
    return None, None
