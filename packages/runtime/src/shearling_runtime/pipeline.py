"""OpenVINO GenAI with the operators, and with attention inside them where the model allows it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shearling_runtime.build_facts import read_build_facts
from shearling_runtime.faults import ModelUnusable, RuntimeUnavailable
from shearling_runtime.openvino import extension, preferred_properties, register

if TYPE_CHECKING:
    import openvino_genai

MODEL = "openvino_model.xml"


def pipeline(directory: str | Path, device: str = "CPU", **properties: Any) -> openvino_genai.LLMPipeline:
    """An `LLMPipeline` of an exported directory, as fast as this machine can run it.

    The attention of a packed decoder goes into its layers when it is loaded, which saves a quarter of the time of a
    token of a small model. `ATTENTION_BACKEND`, `KV_CACHE_PRECISION` or `scheduler_config` among the properties keep
    OpenVINO's own, and so does a model whose attention is not plain.

    Args:
        directory: holds `openvino_model.xml` and its tokenizer.
        device: of OpenVINO.
        properties: of the pipeline; those that are not given are `preferred_properties()` for packed models.

    Raises:
        ModelUnusable: there is none, or OpenVINO cannot load it.
        RuntimeUnavailable: OpenVINO GenAI is not installed, temporary files have no room, or see `extension`.
    """
    facts, place = read_build_facts(), Path(directory)
    try:
        import openvino_genai
    except ImportError as error:
        raise RuntimeUnavailable(
            f"OpenVINO GenAI cannot be imported: {error}", remedy=f"pip install 'openvino-genai=={facts.openvino}.*'"
        ) from error
    try:
        if not is_packed(place / MODEL):
            return openvino_genai.LLMPipeline(str(place), device, **properties)
        options = {**preferred_properties(), "extensions": [extension()], **properties}
        kept = device != "CPU" or not _fusion().STOCK_ATTENTION.isdisjoint(properties)
        fused = None if kept else _fused(place / MODEL)
        if fused is None:
            return openvino_genai.LLMPipeline(str(place), device, **options)
        return _open_fused(fused, place, device, options)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ModelUnusable(f"OpenVINO cannot load it: {reason}", where=place, remedy="Export it again") from error


def _open_fused(model: Any, place: Path, device: str, options: dict[str, Any]) -> Any:
    try:
        return _fusion().open_pipeline(model, place, device, options)
    except OSError as error:
        raise RuntimeUnavailable(
            f"the model cannot be written to a temporary file: {error}",
            remedy="Make room there, name another directory in TMPDIR, or give ATTENTION_BACKEND='SDPA', which needs "
            "no such file and is slower",
        ) from error


def is_packed(xml: Path) -> bool:
    """Whether an IR names our operators."""
    # An attribute value cannot hold a bare quotation mark, so this is nothing but the operator set of a layer.
    try:
        return f'version="{read_build_facts().operator_set}"'.encode() in xml.read_bytes()
    except OSError as error:
        raise ModelUnusable(
            f"its model cannot be read: {error.strerror}", where=xml, remedy="Give the directory of an IR"
        ) from error


def _fused(xml: Path) -> Any:
    import openvino
    from openvino.utils.node_factory import NodeFactory

    core = openvino.Core()
    register(core)
    factory = NodeFactory()
    factory.add_extension(extension())
    fusion = _fusion()
    model, obstacle = fusion.fuse_decoder(core.read_model(xml), fusion.read_configuration(xml), factory)
    return model if obstacle is None else None


def _fusion() -> Any:
    # The toolchain's own module, which the build of the wheel puts beside this one.
    return importlib.import_module("shearling_runtime.decoder_fusion")
