"""The formats that an export may write.

An implementation is a subclass of `export.formats.export_format.FormatWriter`, named for each kind of model that the
format holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shearling.registry.registry import Entry, Registry, load_implementation


@dataclass(frozen=True, kw_only=True)
class ExportFormat(Entry):
    """One export format.

    Attributes:
        implementation: `language_model` or `classifier` -> `package.module:attribute`, or the class itself; what is not
            named is not held.
        directory: where it stands inside an export.
        frozen_directory: of a format that has no place for ranks kept apart, and holds the frozen model where they
            are: its directory then, so that nobody runs it for the fine-tuned one.
        holds_separate: whether it has a place for ranks kept apart, beside the weight that they belong to.
        takes_weight_format: whether `--weight-format` is for it; what does not take it has the type of the base.
        has_sparse_kernel: whether `--sparse-kernel` may name it.
        needs_adapter: whether it is nothing without one.
        by_default: whether it is written where `--formats` is not given.
    """

    implementation: Mapping[str, Any]
    directory: str
    frozen_directory: str | None = None
    holds_separate: bool = False
    takes_weight_format: bool = False
    has_sparse_kernel: bool = False
    needs_adapter: bool = False
    by_default: bool = False

    def load_for(self, head: str) -> Any:
        """What writes a model with this head, imported; see `holds`."""
        return load_implementation(self.implementation[head])

    def holds(self, head: str) -> bool:
        """Whether it can hold a model with this head."""
        return head in self.implementation


EXPORT_FORMATS = Registry(
    noun="format",
    group="shearling.export_formats",
    entry_type=ExportFormat,
    entries=(
        ExportFormat(
            name="openvino",
            summary="OpenVINO IR with its tokenizer, ready for OpenVINO GenAI",
            directory="openvino",
            holds_separate=True,
            takes_weight_format=True,
            has_sparse_kernel=True,
            by_default=True,
            implementation={
                "language_model": "export.formats.openvino:OpenVinoDecoder",
                "classifier": "export.formats.classifier:OpenVinoClassifier",
            },
        ),
        ExportFormat(
            name="onnx",
            summary="ONNX with the cache as inputs and outputs, for ONNX Runtime",
            directory="onnx",
            holds_separate=True,
            takes_weight_format=True,
            has_sparse_kernel=True,
            by_default=True,
            implementation={
                "language_model": "export.formats.onnx:OnnxDecoder",
                "classifier": "export.formats.classifier:OnnxClassifier",
            },
        ),
        ExportFormat(
            name="onnx-genai",
            summary="ONNX of fused operators with genai_config.json, for ONNX Runtime GenAI",
            directory="onnx-genai",
            takes_weight_format=True,
            has_sparse_kernel=True,
            implementation={"language_model": "export.formats.onnx_genai:OnnxGenAIDecoder"},
        ),
        ExportFormat(
            name="hf",
            summary="the merged Hugging Face model, in the type of its base",
            directory="model",
            frozen_directory="base",
            by_default=True,
            implementation={
                "language_model": "export.formats.huggingface:HuggingFaceDecoder",
                "classifier": "export.formats.huggingface:HuggingFaceClassifier",
            },
        ),
        ExportFormat(
            name="peft",
            summary="the chosen adapter alone, in PEFT's format",
            directory="adapter",
            holds_separate=True,
            needs_adapter=True,
            by_default=True,
            implementation={"language_model": "export.formats.peft:PeftAdapter"},
        ),
    ),
)
