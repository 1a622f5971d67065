"""A packed decoder with attention in its layers, as `Rewindable`: it takes the length of its past from the mask that it
is given, so a shorter one forgets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from shearling.kernel.openvino_core import openvino_core

if TYPE_CHECKING:
    import openvino

    from shearling.kernel.loading.packed_model import LoadedIr

SCORED = {"SparseHead", "MatMul"}
"""Operators whose scores are those of their rows, so that rows can be left out before."""
OF_PIPELINE = {"extensions"}
"""Properties that no device knows; the core has the operators already."""
END = np.iinfo(np.int32).max


class RewindableDecoder:
    """Greedy, one text at a time.

    Args:
        loaded: with attention in the layers.
        device: of OpenVINO.
        most_behind: see `Rewindable.read`; at least 1.

    Raises:
        RuntimeError: OpenVINO cannot load it.
    """

    def __init__(self, loaded: LoadedIr, device: str, *, most_behind: int) -> None:
        model = loaded.read()
        _score_last_rows(model, most_behind)
        properties = {name: value for name, value in loaded.properties.items() if name not in OF_PIPELINE}
        compiled = openvino_core().compile_model(model, device, properties)
        self._inputs = {name for port in compiled.inputs for name in port.names}
        self._request: openvino.InferRequest = compiled.create_infer_request()

    def read(self, tokens: Sequence[int], seen: int, *, behind: int) -> Sequence[int]:
        """See `Rewindable`."""
        if seen == 0:
            self._request.reset_state()
        positions = seen + len(tokens)
        values: dict[str, Any] = {
            "input_ids": np.asarray([tokens], dtype=np.int64),
            "attention_mask": np.ones((1, positions), dtype=np.int64),
            "position_ids": np.arange(seen, positions, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, dtype=np.int32),
        }
        self._request.infer({name: values[name] for name in self._inputs}, share_inputs=True)
        scores = self._request.get_output_tensor(0).data
        likeliest: list[int] = scores[0, -behind:].argmax(axis=-1).tolist()
        return likeliest


def _score_last_rows(model: Any, rows: int) -> None:
    """Scores of a whole prompt would take more memory than the model."""
    from openvino import opset13

    scored = model.get_results()[0].input_value(0).get_node()
    if scored.get_type_name() not in SCORED:
        return
    bounds = [np.array([bound], dtype=np.int64) for bound in (-rows, END, 1, 1)]
    last = opset13.slice(scored.input_value(0), *bounds)
    scored.input(0).replace_source_output(last.output(0))
    model.validate_nodes_and_infer_types()
