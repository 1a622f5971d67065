"""Every form in which a packed decoder can be loaded, beside its stock file: for processes of their own, which need no
torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import openvino as ov

from shearling.kernel.loading import packed_choice
from shearling.kernel.loading.packed_model import load_ir
from shearling.kernel.openvino_core import openvino_core
from shearling.kernel.openvino_extension import machine_operators

F32 = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0", "KV_CACHE_PRECISION": "f32"}
EXACT = {"EXECUTION_MODE_HINT": "ACCURACY"}
OWN_ATTENTION = {"ATTENTION_BACKEND": "SDPA"}
MEASURED = "as measured"
FORMS: Mapping[str, tuple[Mapping[str, str], float]] = {
    "attention in the layers": ({"PACKED": "always", "KV_CACHE_PRECISION": "f16"}, 2e-2),
    "attention in the layers, exact": ({"PACKED": "always", **EXACT}, 1e-5),
    "OpenVINO's attention": ({"PACKED": "always", **OWN_ATTENTION}, 2e-2),
    "OpenVINO's attention, exact": ({"PACKED": "always", **OWN_ATTENTION, **EXACT}, 1e-5),
    "with zeros": ({"PACKED": "expanded"}, 2e-2),
    "unpacked": ({"PACKED": "never"}, 1e-5),
    MEASURED: ({"PACKED": "measured"}, 2e-2),
}
"""Name -> properties, and how far logits may be from those of the stock file, as a share of the largest. Activations of
eight bits and keys of sixteen are the most that rounds them."""
STEPS = (20, 1, 2, 1)
"""Rows that are read at a time: many by other kernels than few."""


class Reader:
    """A decoder that reads on."""

    def __init__(self, model: ov.Model, properties: Mapping[str, str]) -> None:
        of_device = {name: value for name, value in properties.items() if name not in OWN_ATTENTION}
        self._request = openvino_core().compile_model(model, "CPU", of_device).create_infer_request()
        self._past = 0

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """[1, rows, vocabulary] of the next positions."""
        rows = ids.shape[1]
        positions = self._past + np.arange(rows)[None]
        self._past += rows
        feed = {"input_ids": ids, "attention_mask": np.ones((1, self._past), np.int64), "position_ids": positions}
        self._request.infer({**feed, "beam_idx": np.zeros(1, np.int32)})
        return self._request.get_output_tensor(0).data.copy()


def compare_forms(packed: str, stock: str, measured: str) -> None:
    """Logits of a packed decoder in every form, and of the stock file of the same integers.

    Args:
        packed: an IR.
        stock: another.
        measured: whether that form is among them, which takes as long as all others; anything or nothing.
    """
    # A tiny model is measured, too, and in no time.
    packed_choice.LEAST_BYTES, packed_choice.LEAST_ROUNDS, packed_choice.SECONDS = 1, 1, 0.0
    operators, xml = replace(machine_operators(), cache=None), Path(packed)
    theirs = Reader(openvino_core().read_model(stock), F32)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 200, (1, rows)) for rows in STEPS]
    expected = [theirs.logits(ids) for ids in prompts]
    for name in FORMS if measured else FORMS.keys() - {MEASURED}:
        properties, tolerance = FORMS[name]
        loaded = load_ir(xml, operators, properties={**F32, **properties})
        ours = Reader(loaded.read(), loaded.properties)
        for ids, logits in zip(prompts, expected, strict=True):
            distance = np.abs(ours.logits(ids) - logits).max() / np.abs(logits).max()
            assert distance <= tolerance, (name, ids.shape[1], float(distance))
