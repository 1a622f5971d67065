"""The matrices of a packed operator, as the stock file holds them."""

from __future__ import annotations

from typing import Any

import numpy as np

from export.packing.joined_products import join_parts
from shearling.errors import ArtefactCorrupt
from shearling.kernel.bundle import split_bundle
from shearling.kernel.library import unpack_anywhere
from shearling.kernel.loading.dense_form import NAME_SEPARATOR
from shearling.kernel.loading.packed_operator import WEIGHTS_PORT
from shearling.kernel.packed_format import Matrix


def read_packed(node: Any) -> dict[str, Matrix]:
    """Constant name -> matrix, of one operator, verified; with the parts of a weight put together.

    Raises:
        ArtefactCorrupt: one lies; names it.
    """
    operator = node.get_type_name()
    constant = node.input_value(WEIGHTS_PORT[operator]).get_node()
    paths = constant.get_friendly_name().split(NAME_SEPARATOR)
    parts = split_bundle(np.array(constant.data), operator, node.get_attributes())
    return join_parts({path: _unpack(packed, path) for path, packed in zip(paths, parts.matrices, strict=True)})


def _unpack(packed: Any, path: str) -> Matrix:
    try:
        return unpack_anywhere(packed)
    except ArtefactCorrupt as error:
        raise ArtefactCorrupt(error.message, where=path, remedy="Export again") from None
