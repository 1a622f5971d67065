"""A classifier in OpenVINO and ONNX: tokens in, one row of logits out, no cache."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from export.formats.export_format import Blocks, ExportSubject, Storage, UsageFacts
from export.formats.onnx import (
    MODEL_ONNX,
    OnnxDecoder,
    TracedModel,
    quantizable,
    save_beside,
    store_graph,
    trace,
    traced,
)
from export.formats.openvino import MODEL_XML, OpenVinoDecoder
from export.packing.packing_report import PackingReport
from export.verification.parity import Logits
from shearling.kernel.onnx_runtime_extension import open_session
from shearling.kernel.openvino_extension import PREFERRED_PROPERTIES, compile_ir
from shearling.model.checkpoint_safety import CONFIG
from shearling.model.export_support import TASKS
from shearling.strict_json import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from shearling.kernel.packed_format import Matrix

TASK = TASKS["classifier"]

USAGE = """\
import openvino

model = openvino.compile_model("openvino/openvino_model.xml", "CPU")  # input_ids, attention_mask, ..."""

SPARSE_USAGE = """\
# The wheel shearling-runtime needs neither Shearling nor a compiler; `make wheels` in a checkout builds it.
import openvino
import shearling_runtime

core, properties = openvino.Core(), shearling_runtime.preferred_properties()
shearling_runtime.register(core)
model = core.compile_model("openvino/openvino_model.xml", "CPU", properties)  # input_ids, attention_mask, ..."""


ONNX_USAGE = """\
import onnxruntime

session = onnxruntime.InferenceSession("onnx/model.onnx")  # the same inputs"""

SPARSE_ONNX_USAGE = """\
# The wheel shearling-runtime needs neither Shearling nor a compiler; `make wheels` in a checkout builds it.
import onnxruntime
import shearling_runtime

options = shearling_runtime.session_options()
session = onnxruntime.InferenceSession("onnx/model.onnx", options)  # the same inputs"""


class OpenVinoClassifier(OpenVinoDecoder):
    """A classifier in OpenVINO."""

    head = "classifier"

    def conversion(self, model: PreTrainedModel) -> dict[str, Any]:
        """Options of optimum-intel."""
        return {"task": TASK, "stateful": False}

    def filler(self, directory: Path) -> int:
        """Token of padding."""
        return _padding_token(directory)

    def logits(self, directory: Path, blocks: Blocks, config: dict[str, str], *, obstacle: str | None = None) -> Logits:
        """Of what was written, compiled with these options; there is no decoder's layer."""
        return openvino_class_logits(directory, blocks, config=config)

    def usage(self, facts: UsageFacts) -> str | None:
        """See `FormatWriter`."""
        return SPARSE_USAGE if facts.packed else USAGE


class OnnxClassifier(OnnxDecoder):
    """A classifier in ONNX."""

    head = "classifier"

    def write(self, subject: ExportSubject, directory: Path, storage: Storage) -> PackingReport | None:
        """See `FormatWriter`."""
        return write_onnx_classifier(subject.model, subject.tokenizer, directory, storage, integers=subject.integers)

    def filler(self, directory: Path) -> int:
        """Token of padding."""
        return _padding_token(directory)

    def logits(self, directory: Path, blocks: Blocks) -> Logits:
        """Of what was written."""
        return onnx_class_logits(directory, blocks)

    def usage(self, facts: UsageFacts) -> str | None:
        """See `FormatWriter`."""
        return SPARSE_ONNX_USAGE if facts.packed else ONNX_USAGE


class ClassifierLogits(TracedModel):
    """A classifier as a function from tokens to logits alone."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Logits [B, classes] of tokens [B, S]; the mask [B, S] is 0 at padding, types [B, S] tell the parts of a
        pair.
        """
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        logits: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask, **types).logits
        return logits


def write_onnx_classifier(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    storage: Storage,
    *,
    integers: Mapping[str, Matrix] | None = None,
) -> PackingReport | None:
    """Export a classifier to `directory/model.onnx`; batch and sequence are dynamic. See
    `export.formats.onnx.write_onnx`.

    Raises:
        ArtefactCorrupt: the written files do not hold all weights.
    """
    linears = quantizable(model, prefix=f"{model.base_model_prefix}.")
    packing = store_graph(traced(model, trace_classifier), directory, storage, linears=linears, integers=integers)
    save_beside(model, tokenizer, directory)
    return packing


def trace_classifier(model: PreTrainedModel) -> Any:
    """See `export.formats.onnx.trace`."""
    names = ["input_ids", "attention_mask"]
    if "token_type_ids" in inspect.signature(model.forward).parameters:
        names.append("token_type_ids")
    example = {name: torch.zeros(2, 5, dtype=torch.long) + (name != "token_type_ids") for name in names}
    shapes = {name: {0: "batch", 1: "sequence"} for name in names}
    return trace(ClassifierLogits(model), example, shapes=shapes, inputs=names, outputs=["logits"])


def openvino_class_logits(directory: Path, blocks: Blocks, *, config: dict[str, str]) -> Logits:
    """Logits [1, classes] of an exported IR on the CPU, block by block."""
    compiled = compile_ir(directory / MODEL_XML, properties=config, preferred=PREFERRED_PROPERTIES)
    inputs = {name for port in compiled.inputs for name in port.names}
    return [np.array(compiled(_feed(block, inputs))["logits"], dtype=np.float32) for block in blocks]


def onnx_class_logits(directory: Path, blocks: Blocks) -> Logits:
    """Logits [1, classes] of an exported graph on ONNX Runtime's CPU provider.

    Raises:
        DeviceUnavailable: the runtime chose another provider.
    """
    session = open_session(directory / MODEL_ONNX)
    inputs = {item.name for item in session.get_inputs()}
    return [session.run(["logits"], _feed(block, inputs))[0].astype(np.float32) for block in blocks]


def _padding_token(directory: Path) -> int:
    return int(read_json(directory / CONFIG).get("pad_token_id") or 0)


def _feed(block: npt.NDArray[np.int64], inputs: set[str]) -> dict[str, Any]:
    values = {
        "input_ids": block[None],
        "attention_mask": np.ones_like(block)[None],
        "token_type_ids": np.zeros_like(block)[None],
    }
    return {name: value for name, value in values.items() if name in inputs}
