"""The kernels as a torch operator, and a Linear that reads packed weights: for evaluation, and as an oracle of the
exported file.

Inference only: the operator has no gradient. It runs on the CPU, on the threads of the kernels' own runtime.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from shearling.errors import ArtefactCorrupt
from shearling.kernel.library import load_library, validate
from shearling.kernel.packed_format import read_header


@torch.library.custom_op("shearling::sparse_linear", mutates_args=(), device_types="cpu")
def sparse_linear(x: Tensor, packed: Tensor, rows: int, exact: bool) -> Tensor:
    """Y = x W^T with W packed and validated before.

    Args:
        x: [..., columns], any float dtype.
        packed: uint8 [bytes].
        rows: of W.
        exact: activations stay f32.

    Returns:
        [..., rows] in x's dtype.

    Raises:
        ArtefactCorrupt: the matrix is not one, or has another shape.
    """
    flat = x.reshape(-1, x.shape[-1]).float().contiguous()
    y = torch.empty(len(flat), rows, dtype=torch.float32, device="cpu")
    arguments = (packed.data_ptr(), packed.numel(), flat.data_ptr(), *flat.shape, None, y.data_ptr(), rows)
    fault = load_library().shearling_matmul(*arguments, exact, True, False, None)
    if fault is not None:
        raise ArtefactCorrupt(f"a packed matrix is refused: {fault.decode()}")
    return y.reshape(*x.shape[:-1], rows).to(x.dtype)


@sparse_linear.register_fake
def _(x: Tensor, packed: Tensor, rows: int, exact: bool) -> Tensor:
    return x.new_empty(*x.shape[:-1], rows)


class PackedLinear(nn.Module):
    """A linear layer on packed weights.

    Args:
        packed: uint8 [bytes], of shape [out, in]; validated here.
        bias: [out].
        exact: activations stay f32.

    Raises:
        ArtefactCorrupt: not a packed matrix.
    """

    packed: Tensor
    bias: Tensor | None

    def __init__(self, packed: Tensor, bias: Tensor | None = None, *, exact: bool = False) -> None:
        super().__init__()
        validate(packed.numpy())
        header = read_header(packed.numpy())
        self.out_features, self.in_features, self.exact = header.rows, header.columns, exact
        # Not of the state: a checkpoint would put bytes here that nobody validated.
        self.register_buffer("packed", packed, persistent=False)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        y = sparse_linear(x, self.packed, self.out_features, self.exact)
        return y if self.bias is None else y + self.bias.to(y.dtype)
