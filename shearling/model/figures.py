"""The sizes of a model, told from the names and the shapes of its tensors: what estimates are made of."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from shearling.model.gguf_header import is_gguf
from shearling.model.head import classifies
from shearling.model.weight_shards import StoredTensor, StoredWeights

FLOAT32_BYTES = 4
_LAYER = re.compile(r"(?:^|\.)(\d+)\.")


@dataclass(frozen=True)
class ModelFigures:
    """Sizes, in entries where the name does not say bytes.

    Attributes:
        parameters: of the whole model.
        stored_bytes: of the checkpoint.
        layers: transformer layers.
        layer_parameters: of the largest layer.
        linear_parameters: in matrices of all layers.
        layer_linear_parameters: in matrices of the largest layer.
        matrix: of the largest matrix in a layer.
        outside_parameters: outside the layers.
        table: of the largest tensor outside the layers, an embedding or a head.
        table_bytes: of that tensor in the checkpoint.
        hidden: width of the hidden states.
        vocabulary: logits of a position; 0 of a classifier.
        widest: most inputs or outputs of a matrix in a layer.
        gram: entries of the Gram matrices of all linears of a layer, inputs squared.
        largest_gram: of one of them.
    """

    parameters: int
    stored_bytes: int
    layers: int
    layer_parameters: int
    linear_parameters: int
    layer_linear_parameters: int
    matrix: int
    outside_parameters: int
    table: int
    table_bytes: int
    hidden: int
    vocabulary: int
    widest: int
    gram: int
    largest_gram: int


def read_figures(source: Path) -> ModelFigures:
    """Of a GGUF file as it is expanded, or of a Hugging Face directory; no weight is read.

    Raises:
        ArtefactError: there are no weights, or they cannot be read.
    """
    if is_gguf(source):
        from gguf import GGUFReader

        tensors = {
            str(tensor.name): StoredTensor("float32", tuple(int(size) for size in reversed(tensor.shape)))
            for tensor in GGUFReader(source).tensors
        }
        return figures_of(tensors)
    figures = figures_of(StoredWeights(source).tensors)
    return replace(figures, vocabulary=0) if classifies(source) else figures


def figures_of(tensors: Mapping[str, StoredTensor]) -> ModelFigures:
    """Sizes of a model with these tensors, each under a name that has the index of its layer as a part."""
    layers: dict[str, list[StoredTensor]] = defaultdict(list)
    outside: list[StoredTensor] = []
    for name, tensor in tensors.items():
        found = _LAYER.search(name)
        (outside if found is None else layers[found.group(1)]).append(tensor)
    matrices = [[matrix for tensor in layer for matrix in _matrices(tensor)] for layer in layers.values()] or [[]]
    largest = max(matrices, key=_entries)
    tables = [tensor for tensor in outside if len(tensor.shape) == 2]
    table = max(tables, key=lambda tensor: tensor.count, default=StoredTensor("float32", (0, 0)))
    return ModelFigures(
        parameters=_entries(tensors.values()),
        stored_bytes=sum(tensor.size_bytes for tensor in tensors.values()),
        layers=len(layers),
        layer_parameters=max(map(_entries, layers.values()), default=0),
        linear_parameters=sum(map(_entries, matrices)),
        layer_linear_parameters=_entries(largest),
        matrix=max((tensor.count for tensor in largest), default=0),
        outside_parameters=_entries(outside),
        table=table.count,
        table_bytes=table.size_bytes,
        hidden=table.shape[-1],
        vocabulary=table.shape[0],
        widest=max((max(tensor.shape) for tensor in largest), default=0),
        gram=sum(tensor.shape[1] ** 2 for tensor in largest),
        largest_gram=max((tensor.shape[1] ** 2 for tensor in largest), default=0),
    )


def _matrices(tensor: StoredTensor) -> list[StoredTensor]:
    """A matrix, or those of all experts that are stored as one tensor."""
    match tensor.shape:
        case (_, _):
            return [tensor]
        case (experts, rows, columns) if rows > 1:
            return [StoredTensor(tensor.dtype, (rows, columns))] * experts
        case _:
            return []


def _entries(tensors: Iterable[StoredTensor]) -> int:
    return sum(tensor.count for tensor in tensors)
