"""A classifier in OpenVINO and ONNX: tokens in, one row of logits out, no cache."""

from __future__ import annotations

import inspect
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from export.formats.onnx import MODEL_ONNX, OPSET, check_external_data, name_weights, quantizable
from export.formats.onnx_weights import store_weights
from export.formats.openvino import MODEL_XML, store_ir, write_tokenizer
from export.formats.quiet_conversion import quiet_conversion
from export.number_format import Kernel, Weights
from shearling.errors import DeviceUnavailable
from shearling.kernel.onnx_runtime_extension import session_options_for
from shearling.kernel.openvino_extension import compile_ir
from shearling.model.export_support import TASKS, check_exportable

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from export.reporting.report import PackingReport
    from export.verification.parity import Logits

TASK = TASKS["classifier"]


def write_openvino_classifier(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    *,
    weights: Weights,
    sparsity: Mapping[str, str],
    kernel: Kernel = "stock",
) -> PackingReport | None:
    """Export a classifier to `directory`, its tokenizer and configuration beside it; see
    `export.formats.openvino.write_openvino`.

    Raises:
        CompilerMissing: the sparse operators cannot be built here.
        ExportUnavailable: the installed versions cannot export this architecture.
        ModelUnsupported: the tokenizer has no OpenVINO form.
    """
    check_exportable(model.config.model_type, head="classifier")
    directory.mkdir(parents=True, exist_ok=True)
    write_tokenizer(tokenizer, directory)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".raw-") as raw:
        with quiet_conversion():
            from optimum.exporters.openvino import export_from_model

            export_from_model(model, output=Path(raw), task=TASK, stateful=False)
        packing = store_ir(Path(raw), directory, weights=weights, sparsity=sparsity, kernel=kernel)
    model.config.save_pretrained(str(directory))
    return packing


class ClassifierLogits(nn.Module):
    """A classifier as a function from tokens to logits alone.

    Args:
        model: a Hugging Face classifier.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

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
    *,
    weights: Weights,
    kernel: Kernel = "stock",
) -> PackingReport | None:
    """Export a classifier to `directory/model.onnx`; batch and sequence are dynamic. See
    `export.formats.onnx.write_onnx`.

    Raises:
        ArtefactCorrupt: the written files do not hold all weights.
    """
    from export.packing.packed_onnx import pack_graph

    directory.mkdir(parents=True, exist_ok=True)
    names = ["input_ids", "attention_mask"]
    if "token_type_ids" in inspect.signature(model.forward).parameters:
        names.append("token_type_ids")
    example = {name: torch.zeros(2, 5, dtype=torch.long) + (name != "token_type_ids") for name in names}
    with quiet_conversion(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            ClassifierLogits(model).eval(),
            kwargs=example,
            dynamo=True,
            dynamic_shapes={name: {0: "batch", 1: "sequence"} for name in names},
            input_names=names,
            output_names=["logits"],
            opset_version=OPSET,
            optimize=False,
            verbose=False,
        )
    if program is None:
        raise ValueError("torch.onnx.export returned nothing")
    name_weights(program.model)
    store_weights(program.model, weights, linears=quantizable(model, prefix=f"{model.base_model_prefix}."))
    packing = pack_graph(program.model) if kernel == "sparse" else None
    program.save(directory / MODEL_ONNX, external_data=True)
    check_external_data(directory / MODEL_ONNX)
    tokenizer.save_pretrained(str(directory))
    model.config.save_pretrained(str(directory))
    return packing


def openvino_class_logits(
    directory: Path, blocks: Sequence[npt.NDArray[np.int64]], *, config: dict[str, str]
) -> Logits:
    """Logits [1, classes] of an exported IR on the CPU, block by block."""
    compiled = compile_ir(directory / MODEL_XML, properties=config)
    inputs = {name for port in compiled.inputs for name in port.names}
    return [np.array(compiled(_feed(block, inputs))["logits"], dtype=np.float32) for block in blocks]


def onnx_class_logits(directory: Path, blocks: Sequence[npt.NDArray[np.int64]]) -> Logits:
    """Logits [1, classes] of an exported graph on ONNX Runtime's CPU provider.

    Raises:
        DeviceUnavailable: the runtime chose another provider.
    """
    import onnxruntime

    path = directory / MODEL_ONNX
    session = onnxruntime.InferenceSession(str(path), session_options_for(path), providers=["CPUExecutionProvider"])
    if session.get_providers() != ["CPUExecutionProvider"]:
        raise DeviceUnavailable(f"ONNX Runtime uses {session.get_providers()}", where=directory)
    inputs = {item.name for item in session.get_inputs()}
    return [session.run(["logits"], _feed(block, inputs))[0].astype(np.float32) for block in blocks]


def _feed(block: npt.NDArray[np.int64], inputs: set[str]) -> dict[str, Any]:
    values = {
        "input_ids": block[None],
        "attention_mask": np.ones_like(block)[None],
        "token_type_ids": np.zeros_like(block)[None],
    }
    return {name: value for name, value in values.items() if name in inputs}
