"""OpenVINO IR: a stateful decoder with its tokenizer beside it, ready for `openvino_genai.LLMPipeline(directory,
"CPU")`.

The same model always gives the same bytes: names that OpenVINO numbers by a process-wide counter are numbered by
position.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.formats.quiet_conversion import quiet_conversion
from export.number_format import INT4_GROUP, LOW_RANK, Kernel, Weights
from export.verification.parity import TEXT
from shearling.errors import ModelUnsupported
from shearling.kernel.openvino_core import openvino_core
from shearling.model.export_support import EXPORT_TASK, check_exportable

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from export.reporting.report import PackingReport

MODEL_XML = "openvino_model.xml"
TOKENIZER_XML = "openvino_tokenizer.xml"
DETOKENIZER_XML = "openvino_detokenizer.xml"
NUMBERED_NAME = re.compile(r"[A-Z][A-Za-z0-9]*_\d+(?:[./_][\w./]*)?")


def write_openvino(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    *,
    weights: Weights,
    sparsity: Mapping[str, str],
    kernel: Kernel = "stock",
) -> PackingReport | None:
    """Export a decoder to `directory`, with tokenizer, detokenizer, chat template and configuration.

    Args:
        model: float32, eval mode; its linears may be modules of ours that keep a low-rank adapter apart.
        tokenizer: converted to an OpenVINO model too.
        directory: created.
        weights: format of the stored weights; zeros stay exactly zero in each.
        sparsity: written to the model's rt_info under `sparsity`.
        kernel: `sparse` packs the weights; see `export.packing.packed_ir`.

    Returns:
        What was packed; None for the stock kernel.

    Raises:
        CompilerMissing: the sparse operators cannot be built here.
        ExportUnavailable: the installed versions cannot export this architecture.
        ModelUnsupported: the tokenizer has no OpenVINO form.
    """
    check_exportable(model.config.model_type)
    directory.mkdir(parents=True, exist_ok=True)
    write_tokenizer(tokenizer, directory)
    # Beside the destination, since OpenVINO maps the weights it reads into memory: a file must not be written over
    # itself.
    with tempfile.TemporaryDirectory(dir=directory, prefix=".raw-") as raw:
        convert(model, Path(raw))
        packing = store_ir(Path(raw), directory, weights=weights, sparsity=sparsity, kernel=kernel)
    model.config.save_pretrained(str(directory))
    if model.generation_config is not None:
        model.generation_config.save_pretrained(str(directory))
    return packing


def store_ir(
    raw: Path, directory: Path, *, weights: Weights, sparsity: Mapping[str, str], kernel: Kernel
) -> PackingReport | None:
    """Write a converted IR with its weights in the form asked for.

    Args:
        raw: holds the IR in float32; another directory, since OpenVINO maps the weights that it reads.
        directory: where it will stand.
        weights: format of the stored weights.
        sparsity: written to the model's rt_info under `sparsity`.
        kernel: `sparse` packs the weights.

    Returns:
        What was packed; None for the stock kernel.

    Raises:
        CompilerMissing: the sparse operators cannot be built here.
    """
    from export.packing.packed_ir import pack_ir

    ir = openvino_core().read_model(raw / MODEL_XML)
    if weights in ("int8", "int4"):
        ir = compress(ir, weights)
    elif weights == "bf16":
        round_to_bf16(ir)
    for key, value in sparsity.items():
        ir.set_rt_info(value, ["sparsity", key])
    packing = pack_ir(ir) if kernel == "sparse" else None
    save_ir(ir, directory / MODEL_XML, fp16=weights == "fp16", name="model")
    return packing


def convert(model: PreTrainedModel, directory: Path) -> None:
    """Let optimum-intel convert the model to a stateful float32 IR."""
    from export.narrowing import conversion_options

    with quiet_conversion():
        from optimum.exporters.openvino import export_from_model

        export_from_model(model, output=directory, task=EXPORT_TASK, stateful=True, **conversion_options(model))


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write the Hugging Face tokenizer and its OpenVINO form.

    Raises:
        ModelUnsupported: openvino_tokenizers cannot convert it, or converts it to one that splits text differently.
    """
    with quiet_conversion():
        from openvino_tokenizers import convert_tokenizer

        try:
            encoder, decoder = convert_tokenizer(tokenizer, with_detokenizer=True)
        # It raises whatever the missing step raises: OVTypeError, NotImplementedError, RuntimeError, KeyError.
        except Exception as error:
            raise ModelUnsupported(
                f"openvino_tokenizers cannot convert this tokenizer: {type(error).__name__}: {error}",
                where=type(tokenizer).__name__,
                remedy="Export without openvino: --formats onnx,hf,peft",
            ) from error
    tokenizer.save_pretrained(str(directory))
    save_ir(encoder, directory / TOKENIZER_XML, fp16=False, name="tokenizer")
    save_ir(decoder, directory / DETOKENIZER_XML, fp16=False, name="detokenizer")
    _check_tokenizer(tokenizer, directory / TOKENIZER_XML)


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, path: Path) -> None:

    # openvino_tokenizers is imported by now, and has told OpenVINO of its operators.
    converted = openvino_core().compile_model(path, "CPU")([TEXT])["input_ids"][0].tolist()
    expected = tokenizer(TEXT)["input_ids"]
    if converted != expected:
        place = next(
            (index for index, pair in enumerate(zip(converted, expected, strict=False)) if pair[0] != pair[1]),
            "the end",
        )
        raise ModelUnsupported(
            f"the converted tokenizer differs from the original at token {place} of a test text",
            where=type(tokenizer).__name__,
            remedy="Export without openvino: --formats onnx,hf,peft",
        )


def compress(ir: Any, weights: Weights) -> Any:
    """Quantize the weight constants through NNCF, symmetrically, so that zero is the integer zero.

    Args:
        ir: an `openvino.Model` with float weights; consumed.
        weights: `int8` (one scale a row, embeddings included) or `int4` (decoder layers in groups, the rest int8).
    """
    with quiet_conversion():
        import nncf

        nncf.set_log_level(logging.ERROR)
        factors = nncf.IgnoredScope(patterns=[f".*{name}.*" for name in LOW_RANK], validate=False)
        if weights == "int8":
            return nncf.compress_weights(ir, mode=nncf.CompressWeightsMode.INT8_SYM, ignored_scope=factors)
        # A width that 128 does not divide takes the largest smaller power of two that does; below 16 it stays int8.
        advanced = nncf.AdvancedCompressionParameters(
            group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST, min_adjusted_group_size=16
        )
        return nncf.compress_weights(
            ir,
            mode=nncf.CompressWeightsMode.INT4_SYM,
            group_size=INT4_GROUP,
            ratio=1.0,
            backup_mode=nncf.BackupMode.INT8_SYM,
            ignored_scope=factors,
            advanced_parameters=advanced,
        )


def round_to_bf16(ir: Any) -> None:
    """Store every float32 weight matrix as bfloat16 followed by a conversion, in place.

    OpenVINO's own `save_model` halves to float16 only, which cannot hold what bfloat16 training may produce.
    """
    import numpy as np
    import openvino
    from openvino import opset13

    for node in ir.get_ordered_ops():
        if (
            node.get_type_name() != "Constant"
            or node.get_element_type() != openvino.Type.f32
            or sum(size > 1 for size in node.shape) < 2
        ):
            continue
        values = np.ascontiguousarray(node.data, dtype=np.float32).view(np.uint32)
        # To nearest, ties to even: add half of the last kept place, less one when that place is even already.
        rounded = ((values + 0x7FFF + ((values >> 16) & 1)) >> 16).astype(np.uint16)
        stored = openvino.op.Constant(
            openvino.Tensor(rounded, openvino.Shape(list(node.shape)), openvino.Type.bf16), shared_memory=False
        )
        stored.set_friendly_name(f"{node.get_friendly_name()}_compressed")
        restored = opset13.convert(stored, openvino.Type.f32)
        name = node.get_friendly_name()
        for target in node.output(0).get_target_inputs():
            target.replace_source_output(restored.output(0))
        restored.set_friendly_name(name)


def save_ir(ir: Any, path: Path, *, fp16: bool, name: str) -> None:
    """Save an `openvino.Model` under names that do not depend on what this process converted before."""
    import openvino

    ir.set_friendly_name(name)
    for index, node in enumerate(ir.get_ordered_ops()):
        if NUMBERED_NAME.fullmatch(node.get_friendly_name()):
            node.set_friendly_name(f"{node.get_type_name()}_at_{index}")
        for port, output in enumerate(node.outputs()):
            if any(NUMBERED_NAME.fullmatch(given) for given in output.get_names()):
                output.get_tensor().set_names({f"{node.get_type_name()}_at_{index}_{port}"})
    openvino.save_model(ir, str(path), compress_to_fp16=fp16)
