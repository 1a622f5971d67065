"""OpenVINO with the operators of the extension, where a model asks for them.

The IR names the operator set of every layer, so whether a file needs the extension is read in the file itself.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shearling.cache import cache_directory
from shearling.console import log
from shearling.errors import ArtefactCorrupt, ArtefactMissing, DeviceUnavailable, ModelUnsupported, UsageError
from shearling.kernel.library import kernels_in_use
from shearling.kernel.loading.ir_text import MalformedText
from shearling.kernel.loading.known_crash import AVOIDED, REMEDY, DiesInBf16, survivable
from shearling.kernel.loading.packed_choice import CHOICES, PACKED, UnknownChoice, WrittenOtherwise, stock_properties
from shearling.kernel.loading.packed_model import LoadedIr, Operators, load_ir
from shearling.kernel.openvino_core import openvino_core
from shearling.kernel.private_files import unloadable
from shearling.kernel.runtime_refusal import last_line

if TYPE_CHECKING:
    import openvino

OPERATOR_SET = "shearling"
RT_INFO = ("shearling", "sparse_linear")
"""Where a packed model says so of itself, for readers of `openvino.Model.get_rt_info`."""


PREFERRED_PROPERTIES = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
"""What packed models ran fastest with where it was measured (docs/log/kernels.md); `DIR@NAME=VALUE` of `serve` sets
others.

Our operators take and give f32, so bf16 around them is four conversions a layer, which cost a token more than attention
in bf16 saves; where stock products are left they read one row, and quantizing that costs more than it saves. A
classifier, all of whose tokens go through at once, ran as fast or faster with them, too (docs/results/lonas.md).
"""


def needs_extension(xml: Path) -> bool:
    """Whether an IR uses our operators.

    Raises:
        ArtefactMissing: no such file.
    """
    if not xml.is_file():
        raise ArtefactMissing(
            "no OpenVINO model here", where=xml, remedy="Export one with: python -m export --formats openvino"
        )
    # An attribute value cannot hold a bare quotation mark, so this is nothing but the operator set of a layer.
    return f'version="{OPERATOR_SET}"'.encode() in xml.read_bytes()


def required_extensions(xml: Path) -> tuple[Path, ...]:
    """Libraries that OpenVINO has to load before it can read an IR; built on first use.

    Raises:
        ArtefactMissing: no such file.
        CompilerMissing: they are needed, and cannot be built here.
    """
    return (_library(),) if needs_extension(xml) else ()


def load_packed(
    xml: Path,
    *,
    device: str = "CPU",
    properties: Mapping[str, Any],
    packed_properties: Mapping[str, Any] | None = None,
    obstacle: str | None = None,
) -> LoadedIr:
    """Decide how a packed IR is loaded on this machine; see `load_ir`. Says so where something is unpacked, or computed
    in another precision because of the crash that is known.

    Args:
        xml: an IR that uses our operators.
        device: of OpenVINO.
        properties: as they were asked for; `PACKED` among them is one of `CHOICES`.
        packed_properties: the same where something stays packed; None adds `PREFERRED_PROPERTIES`.
        obstacle: why attention may not go into the layers of a decoder; None where it may.

    Raises:
        ArtefactMissing: no such file, or no weights beside it.
        ArtefactCorrupt: an operator that shall be unpacked lies about itself.
        UsageError: `PACKED` has another value.
        DeviceUnavailable: bf16 was asked for, and would end the process.
        CompilerMissing: our operators cannot be built here.
        RuntimeError: OpenVINO cannot read it.
    """
    for file in (xml, xml.with_suffix(".bin")):
        if not file.is_file():
            raise ArtefactMissing("a file of the model is missing", where=file, remedy="Export again")
    try:
        loaded = load_ir(
            xml,
            machine_operators(),
            device=device,
            properties=properties,
            packed_properties=packed_properties,
            obstacle=obstacle,
        )
    except UnknownChoice as error:
        raise _usage(error, xml) from error
    except MalformedText as error:
        raise ArtefactCorrupt(str(error), where=xml, remedy="Export again") from error
    except DiesInBf16 as error:
        raise DeviceUnavailable(str(error), where=xml.parent, remedy=REMEDY) from error
    if loaded.choice.changes_anything:
        _say(f"{xml.parent}: {loaded.choice.reason}")
    if loaded.avoided:
        _say(f"{xml.parent}: {AVOIDED}")
    return loaded


def properties_without_operators(xml: Path, properties: Mapping[str, Any], *, device: str = "CPU") -> dict[str, Any]:
    """Those with which an IR without our operators is compiled: `PACKED` says nothing of it, and what OpenVINO would
    die of is not done, see `shearling.kernel.loading.known_crash`. Says so.

    Args:
        xml: the IR.
        properties: as they were asked for.
        device: of OpenVINO.

    Raises:
        UsageError: `PACKED` is none of `CHOICES`.
        DeviceUnavailable: bf16 was asked for, and would end the process.
    """
    import openvino

    try:
        own = stock_properties(properties)
        survived = survivable(xml.read_bytes(), own, device=device, release=openvino.__version__)
    except UnknownChoice as error:
        raise _usage(error, xml) from error
    except DiesInBf16 as error:
        raise DeviceUnavailable(str(error), where=xml.parent, remedy=REMEDY) from error
    if survived != own:
        _say(f"{xml.parent}: {AVOIDED}")
    return survived


def _usage(error: UnknownChoice, xml: Path) -> UsageError:
    remedy = None if isinstance(error, WrittenOtherwise) else f"Use @{PACKED}={'|'.join(CHOICES)}"
    return UsageError(str(error), where=xml.parent, remedy=remedy)


@functools.cache
def _say(text: str) -> None:
    """Once in a process."""
    log.print(text)


def machine_operators() -> Operators:
    """The operators as they run here.

    Raises:
        CompilerMissing: they cannot be built here.
    """
    library = _library()
    _load(library)
    kept = cache_directory()
    measurements = None if kept is None else kept / "packed"
    return Operators(openvino_core(), library, kernels_in_use(), PREFERRED_PROPERTIES, measurements)


def compile_ir(
    xml: Path,
    *,
    device: str = "CPU",
    properties: Mapping[str, str] | None = None,
    preferred: Mapping[str, str] | None = None,
    packed: str | None = "always",
    obstacle: str | None = None,
) -> openvino.CompiledModel:
    """Compile an IR as it is loaded here: with attention in the layers of a packed decoder, where that is possible.

    Args:
        xml: the model; its `.bin` is beside it.
        device: of OpenVINO.
        properties: of the compilation, such as INFERENCE_PRECISION_HINT; the device's own defaults otherwise.
            `PACKED` among them comes before `packed`.
        preferred: more of them, where something is packed and `properties` do not say otherwise.
        packed: whether packed operators stay packed: `always`, as `measured`, or `never`; None leaves it to the
            environment, which leaves it to a measurement.
        obstacle: why attention stays as the file has it, which is how other programs load it; None where it may go into
            the layers.

    Raises:
        ArtefactMissing: no such file.
        ArtefactCorrupt: an operator that shall be unpacked lies about itself.
        ModelUnsupported: OpenVINO cannot read or compile it, or refuses a property.
        UsageError: `PACKED` has another value than it can have.
        DeviceUnavailable: bf16 was asked for, and would end the process.
        CompilerMissing: it needs our operators, and they cannot be built here.
    """
    own: dict[str, Any] = dict(properties or {})
    with _compiling(xml):
        if not needs_extension(xml):
            own = properties_without_operators(xml, own, device=device)
            return openvino_core().compile_model(openvino_core().read_model(xml), device, own)
        own = {**({} if packed is None else {PACKED: packed}), **own}
        loaded = load_packed(
            xml, device=device, properties=own, packed_properties={**(preferred or {}), **own}, obstacle=obstacle
        )
        return openvino_core().compile_model(loaded.read(), device, loaded.properties)


@contextmanager
def _compiling(xml: Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ModelUnsupported(
            f"OpenVINO cannot compile it: {reason}", where=xml, remedy="Export again, or check the properties"
        ) from error


def rewrites_attention(xml: Path, properties: Mapping[str, str]) -> bool:
    """Whether `compile_ir` puts attention into the layers, so that what the file has in its place does not run.

    Raises:
        ArtefactMissing: no such file.
        ModelUnsupported: OpenVINO cannot read it.
        CompilerMissing: it needs our operators, and they cannot be built here.
    """
    own: dict[str, Any] = {PACKED: "always", **properties}
    with _compiling(xml):
        return needs_extension(xml) and load_packed(xml, properties=own, packed_properties=own).attention is None


def core_for(xml: Path) -> openvino.Core:
    """The core of this process, able to read this IR.

    Raises:
        ArtefactMissing: no such file.
        CompilerMissing: it needs our operators, and they cannot be built here.
    """
    for library in required_extensions(xml):
        _load(library)
    return openvino_core()


@functools.cache
def node_factory() -> Any:
    """Creates nodes of our operators: `create(type, inputs, attributes)`.

    Raises:
        CompilerMissing: they cannot be built here.
    """
    from openvino.utils.node_factory import NodeFactory

    factory = NodeFactory()
    factory.add_extension(str(_library()))
    return factory


@functools.cache
def _load(library: Path) -> None:
    try:
        openvino_core().add_extension(str(library))
    except RuntimeError as error:
        raise unloadable(library, last_line(error)) from error


def _library() -> Path:
    from shearling.kernel.build import build_library

    return build_library()
