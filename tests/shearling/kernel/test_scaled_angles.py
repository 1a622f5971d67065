"""Angles of positions that are scaled beyond the length of training: attention in the layers turns by those of the
file."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

from shearling.kernel.openvino_extension import load_packed
from tests.support.model_forms import EXACT, F32, Reader
from tests.support.packed_decoders import SHAPE, seeded_decoder, write_packed
from tests.support.tiny_models import VOCABULARY

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]  # torchao warns while optimum imports it
TRAINED, SCALED = 64, 256
"""Positions."""
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": TRAINED},
    "longrope": {
        "original_max_position_embeddings": TRAINED,
        "short_factor": [1 + 0.1 * number for number in range(8)],
        "long_factor": [2 + 0.3 * number for number in range(8)],
    },
}
STEPS = (TRAINED - 10, 1, 2, TRAINED, 1, 1)
"""Rows that are read at a time: up to the length of training and past it."""


def scaled_decoder(kind: str) -> tuple[type, Any]:
    rope = {"rope_type": kind, "rope_theta": 10000.0, **SCALINGS[kind]}
    shape = {**SHAPE, "max_position_embeddings": TRAINED if kind == "dynamic" else SCALED, "rope_parameters": rope}
    if kind == "longrope":
        return Phi3ForCausalLM, Phi3Config(**shape, original_max_position_embeddings=TRAINED)
    return LlamaForCausalLM, LlamaConfig(**shape)


@pytest.mark.parametrize("kind", SCALINGS)
def test_scaled_angles_are_those_of_the_file(tmp_path, kind):
    xml = write_packed(tmp_path, seeded_decoder(*scaled_decoder(kind)))
    stock = load_packed(xml, properties={**F32, "PACKED": "never"})
    theirs = Reader(stock.read(), stock.properties)
    forms = ((EXACT, 1e-5), ({}, 2e-2), ({"KV_CACHE_PRECISION": "f16"}, 2e-2))
    readers = []
    for properties, tolerance in forms:
        fused = load_packed(xml, properties={**F32, **properties})
        assert fused.attention is None
        readers.append((Reader(fused.read(), fused.properties), tolerance))
    rng = np.random.default_rng(0)
    for rows in STEPS:
        ids = rng.integers(0, VOCABULARY, (1, rows))
        expected = theirs.logits(ids)
        for ours, tolerance in readers:
            assert np.linalg.norm(ours.logits(ids) - expected) <= tolerance * np.linalg.norm(expected)
