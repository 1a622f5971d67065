"""How many bytes the weights of an exported sub-network take, counted from its shape: those of `openvino_model.bin`.

What the number formats store stands in `export.number_formats`, what the sparse kernels read in
`shearling.kernel.packed_format`. For the latter the weights that rounding makes zero are counted in the frozen model,
at the share of zeros that the candidate gives the layer: a merge moves few of them across that boundary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from search.layer_forms import LayerForm, LayerForms
from shearling.elastic.size import LinearShape, measure_network
from shearling.kernel.packed_format import Encoding, Header, ValueType, expected_value_bytes
from shearling.kernel.packed_scales import ScaleType, bytes_are_smaller
from shearling.quantization.layerwise import narrowed_group

if TYPE_CHECKING:
    from torch import Tensor

    from shearling.elastic.super_network import SuperNetwork

VALUE_TYPES = {"bf16": ValueType.BF16, "int8": ValueType.INT8, "int4": ValueType.INT4}
"""What the sparse kernels read."""

COUNTED = ("fp32", "fp16", "bf16", "int8", "int4")
"""The number formats whose bytes are known; those of other packages store what they like."""

SCALE_BYTES = 2
"""Scales are float16."""

LEAST_SAVING = 0.1
"""A matrix is packed where that saves so much of it; see `export.packing.cost`."""


@dataclass(frozen=True)
class StoredForm:
    """How an export stores weights.

    Attributes:
        weight_format: a number format.
        sparse_kernel: whether zeros are packed away.
        group_size: columns that share a scale in int4, where they divide the layer.
    """

    weight_format: str = "fp32"
    sparse_kernel: bool = False
    group_size: int = 64

    def __str__(self) -> str:
        return self.weight_format + (" for the sparse kernel" if self.sparse_kernel else "")

    def of_bits(self, bits: int) -> StoredForm:
        """Of a layer that has integers of so many bits; 0 leaves it as it is."""
        return replace(self, weight_format=f"int{bits}") if bits else self

    def matrix_bytes(self, rows: int, columns: int) -> int:
        """Of a layer's weight in the stock form."""
        group = self._group(columns)
        if group:
            return rows * columns // 2 + rows * (columns // group) * SCALE_BYTES
        return self.table_bytes(rows, columns)

    def table_bytes(self, rows: int, columns: int) -> int:
        """Of an embedding or a vocabulary projection, which has eight bits where the layers have four."""
        match self.weight_format:
            case "fp32":
                return 4 * rows * columns
            case "fp16" | "bf16":
                return 2 * rows * columns
            case _:
                return rows * columns + rows * SCALE_BYTES

    def factor_bytes(self, weights: int) -> int:
        """Of the factors of an adapter that stays beside the weight; they are never integers."""
        return weights * (2 if self.weight_format in ("fp16", "bf16") else 4)

    def vector_bytes(self, weights: int) -> int:
        """Of norms and biases."""
        return weights * (2 if self.weight_format == "fp16" else 4)

    def packed(self, rows: int, columns: int, stored: int) -> int:
        """Of a matrix with so many weights that are not zero, in the encoding that takes less."""
        kind = self._value_type(columns)
        return min(_packed_bytes(rows, columns, stored, kind, self._group(columns), encoding) for encoding in Encoding)

    def layer_bytes(self, rows: int, columns: int, stored: int) -> int:
        """Of a layer with so many weights that are not zero: packed, where that saves enough."""
        stock = self.matrix_bytes(rows, columns)
        packed = self.packed(rows, columns, stored)
        return packed if packed <= (1 - LEAST_SAVING) * stock else stock

    def _value_type(self, columns: int) -> ValueType:
        narrow = self.weight_format == "int4" and not self._group(columns)
        return ValueType.INT8 if narrow else VALUE_TYPES[self.weight_format]

    def _group(self, columns: int) -> int:
        """Columns that share a scale in int4; 0 where none divides the layer, which is int8 then."""
        return narrowed_group(columns, self.group_size) if self.weight_format == "int4" else 0


class StoredBytes:
    """Counts the bytes of candidates.

    Args:
        network: the super-network, with its weights where zeros are packed away.
        forms: that its layers can take.
        stored: how the export stores them.
    """

    def __init__(self, network: SuperNetwork, forms: LayerForms, stored: StoredForm) -> None:
        self._stored = stored
        model: Any = network.model
        decoder = model.get_output_embeddings() is not None
        # Decoders of integers are packed whole, with zeros or without.
        self._whole = stored.sparse_kernel and decoder and stored.weight_format.startswith("int")
        self._packs = stored.sparse_kernel and network.masks is not None and stored.weight_format in VALUE_TYPES
        linears, layers_path = measure_network(network).linears, network.space.layers_path
        variants = forms.variants()
        self._elastic = {
            path: {form: self._layer_bytes(network, path, linears[path], form) for form in found}
            for path, found in variants.items()
        }
        self._fixed = self._remaining_bytes(network, linears)
        for path, shape in linears.items():
            if path in variants:
                continue
            if path.startswith(f"{layers_path}."):
                form = LayerForm(shape.out_features, shape.in_features)
                self._fixed += self._layer_bytes(network, path, shape, form)
            else:
                self._fixed += stored.table_bytes(shape.out_features, shape.in_features) * shape.stored
                self._fixed += stored.vector_bytes(shape.out_features * shape.bias)

    def count(self, forms: Mapping[str, LayerForm]) -> int:
        """Of a candidate whose layers have these forms."""
        return self._fixed + sum(self._elastic[path][form] for path, form in forms.items())

    def _layer_bytes(self, network: SuperNetwork, path: str, shape: LinearShape, form: LayerForm) -> int:
        rows, columns, stored = form.out_features, form.in_features, self._stored.of_bits(form.bits)
        masked = self._packs and network.masks is not None and path in network.masks
        down = stored.factor_bytes(form.rank * columns)
        if masked and form.rank and stored.weight_format == "bf16":
            # It reads what the weight reads, and is packed with it.
            down = stored.packed(form.rank, columns, form.rank * columns)
        beside = down + stored.factor_bytes(form.rank * rows) + stored.vector_bytes(rows * shape.bias)
        if not (masked or self._whole):
            return stored.matrix_bytes(rows, columns) + beside
        nonzero = self._nonzero(network, path, form, stored) if masked else rows * columns
        packed = stored.packed(rows, columns, nonzero) if self._whole else stored.layer_bytes(rows, columns, nonzero)
        return packed + beside

    def _nonzero(self, network: SuperNetwork, path: str, form: LayerForm, stored: StoredForm) -> int:
        weight = network.weight_at(path, form.percent)
        return count_stored(weight[: form.out_features, : form.in_features], stored)

    def _remaining_bytes(self, network: SuperNetwork, linears: Mapping[str, LinearShape]) -> int:
        """Of embeddings, norms and whatever else is no linear layer."""
        from torch import nn

        counted = {id(parameter) for layer in network.layers.values() for parameter in (layer.lora_a, layer.lora_b)}
        modules: dict[str, Any] = dict(network.model.named_modules())
        embeddings = {
            id(module.weight): module.weight for module in modules.values() if isinstance(module, nn.Embedding)
        }
        for path in linears:
            counted |= {id(parameter) for parameter in (modules[path].weight, modules[path].bias)}
        tables = sum(self._stored.table_bytes(*weight.shape) for weight in embeddings.values())
        others = sum(
            parameter.numel()
            for parameter in network.model.parameters()
            if id(parameter) not in counted and id(parameter) not in embeddings
        )
        # An encoder looks its positions up; their numbers stand in the graph.
        positions = sum(
            buffer.nbytes for name, buffer in network.model.named_buffers() if name.endswith("position_ids")
        )
        return tables + self._stored.vector_bytes(others) + positions


def _packed_bytes(rows: int, columns: int, stored: int, kind: ValueType, group: int, encoding: Encoding) -> int:
    group_size = 0 if kind is ValueType.BF16 else group or columns
    in_bytes = kind is ValueType.INT4 and bytes_are_smaller(-(-columns // group_size))
    scaled = ScaleType.NONE if kind is ValueType.BF16 else ScaleType.I8 if in_bytes else ScaleType.F16
    header = Header(kind, encoding, scaled, rows, columns, group_size, stored, 0)
    positions = header.panels * header.blocks * kind.block_size
    weights = stored if encoding is Encoding.BITMASK else positions
    return replace(header, value_bytes=expected_value_bytes(weights, positions, kind)).total_bytes


def count_stored(weight: Tensor, stored: StoredForm) -> int:
    """Weights that are not zero once they are rounded.

    Args:
        weight: [rows, columns].
        stored: the number format.
    """
    if not stored.weight_format.startswith("int"):
        return int(weight.count_nonzero())
    rows, columns = weight.shape
    group = narrowed_group(columns, stored.group_size) if stored.weight_format == "int4" else 0
    grouped = weight.reshape(rows, columns // (group or columns), group or columns).abs()
    # Four bits reach to -8, and the largest weight of a group lies there; eight reach to 127.
    scale = grouped.amax(dim=-1, keepdim=True) / (8 if group else 127)
    return int((grouped > scale / 2).sum())
