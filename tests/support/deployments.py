"""Real exports of tiny random models, made with the exporters themselves."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel

from shearling.artefact import write_artefact
from shearling.model.checkpoint import save_model
from tests.support.once_per_run import once_per_run
from tests.support.tiny_models import llama_tied_gqa, tiny_tokenizer


def write_export(path: Path) -> Path:
    """An `export` artefact with openvino/, onnx/ and model/ of one tiny model."""
    model = llama_tied_gqa()
    with write_artefact(path, kind="export") as draft:
        write_openvino(model, draft.directory / "openvino")
        write_onnx(model, draft.directory / "onnx")
        save_model(model, tiny_tokenizer(), draft.directory / "model")
    return path


def shared_export(factory: pytest.TempPathFactory) -> Path:
    """What `write_export` writes, once for all tests of a run; none may change it."""
    return once_per_run(factory, "export", lambda directory: write_export(directory / "export")) / "export"


def write_openvino(model: PreTrainedModel, directory: Path) -> Path:
    import openvino
    import openvino_tokenizers
    from optimum.exporters.openvino import export_from_model

    tokenizer = tiny_tokenizer()
    with warnings.catch_warnings():
        # Tracing warns of every Python branch in transformers' code.
        warnings.simplefilter("ignore")
        export_from_model(model, output=directory, task="text-generation-with-past", stateful=True)
        parts = openvino_tokenizers.convert_tokenizer(tokenizer, with_detokenizer=True)
    for part, name in zip(parts, ("openvino_tokenizer.xml", "openvino_detokenizer.xml"), strict=True):
        openvino.save_model(part, directory / name)
    tokenizer.save_pretrained(str(directory))
    return directory


class _Cached(torch.nn.Module):
    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, position_ids, past):
        cache = DynamicCache([(key, value) for key, value in past])
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        return (out.logits, *(tensor for layer in out.past_key_values.layers for tensor in (layer.keys, layer.values)))


def write_onnx(model: PreTrainedModel, directory: Path) -> Path:
    config = model.config
    layers, heads = config.num_hidden_layers, config.num_key_value_heads
    width = config.hidden_size // config.num_attention_heads
    past = [(torch.zeros(2, heads, 3, width), torch.zeros(2, heads, 3, width)) for _ in range(layers)]
    names = [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    free = torch.export.Dim.DYNAMIC
    directory.mkdir(parents=True)
    with warnings.catch_warnings():
        # torch.export uses an interface that torch itself deprecated.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Cached(model).eval(),
            (
                torch.ones(2, 4, dtype=torch.long),
                torch.ones(2, 7, dtype=torch.long),
                torch.arange(3, 7).repeat(2, 1),
                past,
            ),
            dynamo=True,
            input_names=["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{name}" for name in names)],
            output_names=["logits", *(f"present.{name}" for name in names)],
            dynamic_shapes=(
                {0: free, 1: free},
                {0: free, 1: free},
                {0: free, 1: free},
                [({0: free, 2: free}, {0: free, 2: free})] * layers,
            ),
            verbose=False,
        )
    program.save(str(directory / "model.onnx"), external_data=True)
    tiny_tokenizer().save_pretrained(str(directory))
    return directory
