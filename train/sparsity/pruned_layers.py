"""The layers of a checkpoint on their way from file to file: each in float32 while it is pruned, and written before the
next one is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from shearling.elastic.mask import check_masked_zeros
from shearling.model.skeleton import Skeleton, check_finite_tensor
from shearling.model.weight_shards import WeightWriter

if TYPE_CHECKING:
    from torch import Tensor


class PrunedLayers:
    """Where `sparsify` finds each layer, and where it leaves it.

    Args:
        skeleton: of the dense model.
        writer: of the pruned one, whose tensors are of the same names and types.

    Attributes:
        nonzero: path of each linear that was pruned -> weights that are not zero.
    """

    def __init__(self, skeleton: Skeleton, writer: WeightWriter) -> None:
        self.nonzero: dict[str, int] = {}
        self._skeleton, self._writer, self._transformer = skeleton, writer, skeleton.transformer

    def layer(self, index: int) -> AbstractContextManager[Any]:
        """One layer in float32; see `Residence`."""
        import torch

        return self._skeleton.filled(self._transformer.module_path(index, "").rstrip("."), torch.float32)

    def around(self) -> AbstractContextManager[Any]:
        """Embeddings and norms in float32; see `Residence`."""
        import torch

        return self._skeleton.filled_around_layers(torch.float32)

    def done(self, index: int, masks: Mapping[str, Tensor]) -> None:
        """Write the linears of a pruned layer.

        Raises:
            NonFiniteWeights: a new weight is too large for the type that it is stored in.
        """
        check_masked_zeros(self._skeleton.model, masks)
        for path, linear in self._transformer.linears_of(index).items():
            name = f"{path}.weight"
            self.nonzero[path] = int(linear.weight.count_nonzero())
            # Exact where the method leaves what it keeps as it was: every surviving value came from this type.
            stored = linear.weight.detach().to(self._writer.tensors[name].torch_dtype)
            check_finite_tensor(stored, where=name)
            self._writer.write(name, stored)

    def copy_others(self) -> None:
        """Write what pruning leaves alone."""
        for name in self._writer.missing:
            value = self._skeleton.weights.read(name)
            self._writer.write(name, value.to(self._writer.tensors[name].torch_dtype))
