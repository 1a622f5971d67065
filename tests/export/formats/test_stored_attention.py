"""A packed decoder is measured with the attention of its file too, which runs wherever others load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from transformers import LlamaConfig, LlamaForCausalLM

import export.formats.openvino
from export.formats.openvino import MODEL_XML, STORED_BLOCKS, OpenVinoDecoder, write_openvino
from shearling.kernel.openvino_extension import PREFERRED_PROPERTIES, compile_ir
from tests.support.exported_files import stored_as
from tests.support.packed_decoders import SHAPE, seeded_decoder
from tests.support.packing_cases import BLOCKS
from tests.support.tiny_models import FAMILIES, prune_at_random, tiny_tokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]  # optimum's own

PACKED = stored_as("int8", kernel="sparse")


def measured(directory: Path) -> dict[str, list[np.ndarray]]:
    found = OpenVinoDecoder().measure(directory, BLOCKS, PACKED)
    return {each.candidate: [np.array(row) for row in each.logits] for each in found}


def hide_nothing(directory: Path) -> int:
    """Let the file's own attention see what is to come, and padding; returns how many constants that took."""
    weights, changed = directory / "openvino_model.bin", 0
    content = bytearray(weights.read_bytes())
    for data in ElementTree.parse(directory / MODEL_XML).iter("data"):
        if (data.get("element_type"), data.get("size")) == ("f32", "4"):
            start = int(data.get("offset", "0"))
            if np.frombuffer(content, np.float32, 1, start)[0] < -60_000:
                content[start : start + 4] = bytes(4)
                changed += 1
    weights.write_bytes(content)
    return changed


def watch(seen: list[dict[str, Any]], *given: Any, **options: Any) -> Any:
    seen.append(options)
    return compile_ir(*given, **options)


def test_a_fault_in_the_attention_of_the_file_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = seeded_decoder(LlamaForCausalLM, LlamaConfig(**SHAPE, tie_word_embeddings=True))
    prune_at_random(model, share=0.5)
    write_openvino(model, tiny_tokenizer(), tmp_path, PACKED, sparsity={})
    compiled = []
    with monkeypatch.context() as patch:
        patch.setattr(
            export.formats.openvino, "compile_ir", lambda *given, **options: watch(compiled, *given, **options)
        )
        sound = measured(tmp_path)
    # As `serve` loads it, which is nothing that the runtime chose.
    assert (compiled[-1]["properties"], compiled[-1]["preferred"]) == ({}, PREFERRED_PROPERTIES)
    assert list(sound) == [
        "openvino",
        "openvino, padded batch",
        "openvino, attention as stored",
        "openvino, attention as stored, padded batch",
        "openvino, default precision",
    ]
    assert len(sound["openvino, attention as stored"]) == STORED_BLOCKS
    for ours, stored in zip(sound["openvino"], sound["openvino, attention as stored"], strict=False):
        assert np.abs(ours - stored).max() < 1e-3
    assert hide_nothing(tmp_path) == 1
    faulty = measured(tmp_path)
    for name, rows in sound.items():
        off = max(np.abs(row - other).max() for row, other in zip(rows, faulty[name], strict=True))
        assert off > 0.1 if "as stored" in name else off == 0.0, name


def test_what_keeps_its_own_attention_anyway_is_measured_once(tmp_path: Path) -> None:
    model = FAMILIES["llama_tied_gqa"]()
    prune_at_random(model, share=0.5)
    write_openvino(model, tiny_tokenizer(), tmp_path, PACKED, sparsity={})
    assert list(measured(tmp_path)) == ["openvino", "openvino, padded batch", "openvino, default precision"]
