"""How an IR is loaded for OpenVINO GenAI: with which properties, operators and attention, and what the device makes of
them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serve.runtimes.deployment import Deployment
from serve.runtimes.runtime import RunOptions, RuntimeFacts
from serve.runtimes.speculation.settings import without_speculation
from serve.visitor.genai import TIMING_SOURCE
from serve.visitor.ir_settings import OF_GENAI, executed_precision, make_properties, one_operator, reported_settings
from shearling.errors import ArtefactMissing, DeviceUnavailable, EnvironmentFault, UsageError
from shearling.kernel.loading.packed_choice import PACKED
from shearling.kernel.loading.packed_model import LoadedIr
from shearling.kernel.openvino_core import openvino_core
from shearling.kernel.openvino_extension import (
    PREFERRED_PROPERTIES,
    load_packed,
    properties_without_operators,
    required_extensions,
)
from shearling.kernel.runtime_refusal import last_line, refusals

if TYPE_CHECKING:
    import openvino

REQUIRED = (
    "openvino_model.bin",
    "openvino_tokenizer.xml",
    "openvino_tokenizer.bin",
    "openvino_detokenizer.xml",
    "openvino_detokenizer.bin",
)
EXACT = {"EXECUTION_MODE_HINT": "ACCURACY"}
"""Of packed models that are asked for fp32: products round activations for speed otherwise."""
PREFERRED_BATCHING = {"KV_CACHE_PRECISION": "f16"}
"""Of packed models: with the default, u8, a token of one request or of eight took a tenth longer."""


def require_tokenizer(directory: Path) -> None:
    """Check that GenAI finds a tokenizer and weights beside a model.

    Raises:
        ArtefactMissing: it does not.
    """
    missing = [name for name in REQUIRED if not (directory / name).is_file()]
    if missing:
        raise ArtefactMissing(
            f"OpenVINO GenAI needs {', '.join(missing)}",
            where=directory,
            remedy="Export again with: python -m export; bench and check measure it without: --no-genai",
        )


@dataclass(frozen=True)
class StockIr:
    """A model without operators of ours; what `LoadedIr` is for one that has some."""

    properties: dict[str, Any]


def prepare(
    deployment: Deployment, options: RunOptions, *, batching: bool = False
) -> tuple[RuntimeFacts, LoadedIr | StockIr]:
    """What the device will do with this deployment, and how it is loaded.

    Args:
        deployment: an OpenVINO export.
        options: device, precision, threads.
        batching: whether it is for continuous batching.

    Raises:
        ShearlingError: see `serve.runtimes.openvino.OpenVINORuntime`.
    """
    own = without_speculation(deployment.properties)
    xml = deployment.model_file
    extensions = required_extensions(xml)
    asked, preferred = (
        {
            **make_properties(
                options.precision, threads=options.threads, hint=options.hint, device=options.device, preferred=more
            ),
            **own,
        }
        for more in (None, {**PREFERRED_PROPERTIES, **(PREFERRED_BATCHING if batching else {})})
    )
    if not extensions:
        stock = StockIr(properties_without_operators(xml, asked, device=options.device))
        return _executed(options, _probe(options.device, stock.properties, deployment)), stock
    if options.precision == "fp32":
        asked, preferred = ({**EXACT, **properties} for properties in (asked, preferred))
    # What OpenVINO refuses is refused before anything is measured with it.
    probed = _probe(options.device, preferred, deployment)
    with refusals(xml.parent):
        loaded = load_packed(
            xml,
            device=options.device,
            properties=asked,
            packed_properties=preferred,
            obstacle="continuous batching rewrites it" if batching else None,
        )
    facts = _executed(
        options, probed if not loaded.choice.stock else _probe(options.device, loaded.properties, deployment)
    )
    facts.settings["extensions"] = ",".join(library.name for library in extensions)
    facts.settings["attention"] = "in the layers" if loaded.attention is None else f"OpenVINO's: {loaded.attention}"
    if options.precision == "fp32":
        facts.settings.update({name: str(loaded.properties[name]) for name in EXACT})
    if loaded.cache is not None:
        facts.settings["KV_CACHE_PRECISION"] = loaded.cache
    if loaded.choice.reason is not None:
        facts.settings["packed"] = loaded.choice.reason
    loaded.properties["extensions"] = [str(library) for library in extensions]
    return facts, loaded


def _probe(device: str, properties: Mapping[str, Any], deployment: Deployment) -> openvino.CompiledModel:
    of_device = {name: value for name, value in properties.items() if name not in OF_GENAI}
    return probe_device(device, of_device, deployment.model_file, label=deployment.label)


@contextmanager
def pipeline_directory(deployment: Deployment, loaded: LoadedIr | StockIr) -> Iterator[Path]:
    """Where a pipeline that takes nothing but a directory finds the model."""
    if isinstance(loaded, StockIr):
        yield deployment.directory
        return
    try:
        with loaded.directory() as directory:
            yield directory
    except OSError as error:
        raise EnvironmentFault(
            f"the graph of the model cannot be written: {error}",
            where=deployment.directory,
            remedy=f"Make room for temporary files, name another directory in TMPDIR, or add @{PACKED}=always",
        ) from error


def probe_device(device: str, properties: Mapping[str, str], xml: Path, *, label: str) -> openvino.CompiledModel:
    """A model of one operator, compiled with these properties, to ask what the device makes of them.

    A pipeline does not show its compiled model, and compiling the real one twice would double time and memory.

    Args:
        device: of OpenVINO.
        properties: of the compilation.
        xml: the model, which may state more.
        label: of what they are for, in the error.

    Raises:
        UsageError: the device refuses a property or its value.
    """
    try:
        return openvino_core().compile_model(one_operator(xml), device, dict(properties))
    except RuntimeError as error:
        raise UsageError(f"OpenVINO refuses {dict(properties)}: {last_line(error)}", where=label) from error


def _executed(options: RunOptions, compiled: openvino.CompiledModel) -> RuntimeFacts:
    import openvino

    precision = executed_precision(compiled)
    if options.precision not in ("default", precision):
        raise DeviceUnavailable(
            f"{options.device} executes {precision} where {options.precision} was asked for",
            remedy="Use --precision fp32, or leave it at default",
        )
    return RuntimeFacts(
        runtime=f"OpenVINO GenAI {openvino.__version__.partition('-')[0]}",
        provider=options.device,
        precision=precision,
        settings=reported_settings(compiled),
        timing_source=TIMING_SOURCE,
    )
