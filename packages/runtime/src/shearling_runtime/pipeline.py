"""OpenVINO GenAI with the operators, and with attention inside them where the model allows it."""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shearling_runtime.build_facts import read_build_facts
from shearling_runtime.faults import ModelUnusable, RequestFault, RuntimeUnavailable
from shearling_runtime.openvino import extension, kernels_in_use, preferred_properties, register

if TYPE_CHECKING:
    import openvino_genai

MODEL = "openvino_model.xml"


def pipeline(directory: str | Path, device: str = "CPU", **properties: Any) -> openvino_genai.LLMPipeline:
    """An `LLMPipeline` of an exported directory, as fast as this machine can run it.

    What would be slower with zeros left out gets them back when it is loaded, in packed form or in OpenVINO's own:
    measured once, and kept in the user's cache. `PACKED="always"`, `"expanded"` (zeros, packed) or `"never"` (not
    packed) decides without a measurement, as the environment variable `SHEARLING_PACKED` does.

    The attention of a packed decoder goes into its layers, which saves a quarter of the time of a token of a small
    model. Its cache is in half precision, or as `KV_CACHE_PRECISION` says: f16, bf16, u8 or f32. Another precision of
    it, `ATTENTION_BACKEND`, `scheduler_config` or an `INFERENCE_PRECISION_HINT` of f16 among the properties keep
    OpenVINO's own attention, and so does a model whose attention is not plain.

    What OpenVINO would die of is not done: on processors with AMX a gated feed-forward block of one thread computes in
    float32 where its default would be bf16, and a warning says so.

    Args:
        directory: holds `openvino_model.xml` and its tokenizer.
        device: of OpenVINO.
        properties: of the pipeline, and `PACKED`; those that are not given are `preferred_properties()` for packed
            models.

    Raises:
        RequestFault: `PACKED` is none of `always`, `expanded`, `measured` and `never`, or bf16 was asked for, and would
            end the process.
        ModelUnusable: there is none, or OpenVINO cannot load it.
        RuntimeUnavailable: OpenVINO GenAI is not installed, or see `extension`.
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
            return openvino_genai.LLMPipeline(str(place), device, **_without_operators(place, device, properties))
        loaded = load(place / MODEL, device, properties)
        others = [item for item in loaded.properties.get("extensions", ()) if item != extension()]
        loaded.properties["extensions"] = [*others, extension()]
        return loaded.open_pipeline(device)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ModelUnusable(f"OpenVINO cannot load it: {reason}", where=place, remedy="Export it again") from error


def write_fused(directory: str | Path, output: str | Path) -> None:
    """Write a packed decoder with attention in its layers, for programs in C++ and model servers.

    They run it as any stateful model, with `extension()`, without `INFERENCE_PRECISION_HINT="f16"`, which would round
    the angles of its positions, and, in GenAI, with `ATTENTION_BACKEND="SDPA"`; continuous batching cannot. What
    `directory` holds runs everywhere.

    Args:
        directory: of an IR with its tokenizer.
        output: a directory that does not exist, for copies of its files.

    Raises:
        ModelUnusable: the model is not packed, or its attention is not plain.
        RequestFault: the output exists, lies in `directory`, or the directory that it shall be in does not exist.
        RuntimeUnavailable: there is no room, or see `extension`.
    """
    xml, place = Path(directory) / MODEL, Path(output)
    if place.resolve().is_relative_to(xml.parent.resolve()):
        raise RequestFault("it lies in the directory that is copied", where=place, remedy="Name one beside it")
    if not is_packed(xml):
        raise ModelUnusable("it is not packed", where=xml, remedy="Export it with --sparse-kernel openvino")
    try:
        loaded = load(xml, "CPU", {"PACKED": "always"})
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ModelUnusable(f"OpenVINO cannot read it: {reason}", where=xml, remedy="Export it again") from error
    if loaded.attention is not None:
        raise ModelUnusable(f"its attention cannot go into its layers: {loaded.attention}", where=xml)
    try:
        loaded.write(place)
    except FileExistsError as error:
        raise RequestFault("there is something already", where=place, remedy="Name another directory") from error
    except FileNotFoundError as error:
        raise RequestFault("there is no such directory to write it in", where=place.parent, remedy="Make it") from error
    except OSError as error:
        raise RuntimeUnavailable(
            f"it cannot be written: {error.strerror or error}", where=place, remedy="Make room for a copy of the model"
        ) from error


def load(xml: Path, device: str, properties: Mapping[str, Any], *, obstacle: str | None = None) -> Any:
    """How a packed IR is loaded on this machine: a `LoadedIr` of the toolchain.

    Args:
        xml: the model.
        device: of OpenVINO.
        properties: as of `pipeline`.
        obstacle: why attention may not go into the layers; None where it may.

    Raises:
        RequestFault, ModelUnusable, RuntimeUnavailable: see `pipeline`.
        RuntimeError: OpenVINO cannot read it.
    """
    try:
        load_ir = _loading("packed_model").load_ir
        loaded = load_ir(xml, machine_operators(), device=device, properties=properties, obstacle=obstacle)
    except OSError as error:
        raise ModelUnusable(
            f"its weights cannot be read: {error.strerror}", where=xml, remedy="Export it again"
        ) from error
    except _loading("packed_choice").UnknownChoice as error:
        raise RequestFault(str(error), where=xml) from error
    except _loading("known_crash").DiesInBf16 as error:
        raise RequestFault(str(error), where=xml, remedy=_loading("known_crash").REMEDY) from error
    except _loading("ir_text").MalformedText as error:
        raise ModelUnusable(str(error), where=xml, remedy="Export it again") from error
    if loaded.avoided:
        _tell_avoided(xml.parent)
    return loaded


def _without_operators(place: Path, device: str, properties: Mapping[str, Any]) -> dict[str, Any]:
    """Properties of a model that is not packed: `PACKED` says nothing of it, and OpenVINO survives them."""
    import openvino

    choice, crash = _loading("packed_choice"), _loading("known_crash")
    try:
        own = choice.stock_properties(properties)
        graph, release = (place / MODEL).read_bytes(), openvino.__version__
        survived: dict[str, Any] = crash.survivable(graph, own, device=device, release=release)
    except choice.UnknownChoice as error:
        raise RequestFault(str(error), where=place) from error
    except crash.DiesInBf16 as error:
        raise RequestFault(str(error), where=place, remedy=crash.REMEDY) from error
    if survived != own:
        _tell_avoided(place)
    return survived


def _tell_avoided(place: Path) -> None:
    warnings.warn(f"{place}: {_loading('known_crash').AVOIDED}", RuntimeWarning, stacklevel=4)


def is_packed(xml: Path) -> bool:
    """Whether an IR names our operators."""
    # An attribute value cannot hold a bare quotation mark, so this is nothing but the operator set of a layer.
    try:
        return f'version="{read_build_facts().operator_set}"'.encode() in xml.read_bytes()
    except OSError as error:
        raise ModelUnusable(
            f"its model cannot be read: {error.strerror}", where=xml, remedy="Give the directory of an IR"
        ) from error


@functools.cache
def machine_operators() -> Any:
    """The operators as they run here: `Operators` of the toolchain.

    Raises:
        RuntimeUnavailable: see `extension`.
    """
    library = extension()
    import openvino

    core = openvino.Core()
    register(core)
    make = _loading("packed_model").Operators
    return make(core, Path(library), kernels_in_use(), preferred_properties(), _cache())


def _cache() -> Path | None:
    found: Path | None = importlib.import_module("shearling_runtime.cache").cache_directory()
    return None if found is None else found / "packed"


def _loading(module: str) -> Any:
    # The toolchain's own modules, which the build of the wheel puts beside this one.
    return importlib.import_module(f"shearling_runtime.loading.{module}")
