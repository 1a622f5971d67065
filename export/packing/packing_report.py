"""What was packed in a file, matrix by matrix, with its bytes before and after."""

from __future__ import annotations

from shearling.strict_json import Document


class PackedLayer(Document):
    """One weight matrix in the packed form.

    Attributes:
        operator: kind of the operator that reads it, alone or with others.
        node: name of that operator in the file: in an IR, of the nodes that it replaced.
        weight_format: bf16, int8 or int4.
        encoding: `bitmask` stores what is not zero, `dense` everything.
        shape: [out, in].
        bytes_before: weights and scales in the stock file.
        bytes_after: the packed constant.
    """

    path: str
    operator: str
    node: str
    weight_format: str
    encoding: str
    shape: tuple[int, int]
    zeros: int
    bytes_before: int
    bytes_after: int


class PackingReport(Document):
    """What a sparse export packed in one format.

    Attributes:
        operators: how many of each kind the file holds.
        kept: weights that stay as the stock file holds them, and why.
    """

    operators: dict[str, int]
    layers: tuple[PackedLayer, ...]
    kept: dict[str, str]

    @property
    def packed(self) -> bool:
        """Whether the file needs the operators of this project; where nothing was packed it is a stock file."""
        return bool(self.operators)

    @property
    def bytes_before(self) -> int:
        """Of all packed layers, in the stock file."""
        return sum(layer.bytes_before for layer in self.layers)

    @property
    def bytes_after(self) -> int:
        """Of all packed layers."""
        return sum(layer.bytes_after for layer in self.layers)
