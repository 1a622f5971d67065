"""A packed IR as it is loaded on this machine; the file stays as it is, and nothing is written."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import stat
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .decoder_fusion import CACHE_PRECISION, CACHE_TYPES, STOCK_ATTENTION, fuse_decoder, kept_cache
from .dense_form import unpack
from .ir_text import IrText, MalformedText
from .known_crash import ISA_LIMITS, survivable
from .packed_choice import (
    LAYERS,
    PACKED,
    TEXT_ROWS,
    TOKEN_ROWS,
    ForwardStopwatch,
    MeasurementPlace,
    PackedChoice,
    Stopwatch,
    WrittenOtherwise,
    as_writeable,
    choose,
    chosen,
    without_choice,
)
from .packed_operator import WEIGHTS_PORT, expand, find_operators, multiply_exactly

CPU = "CPU"
PRECISION_HINT, EXECUTION_MODE = "INFERENCE_PRECISION_HINT", "EXECUTION_MODE_HINT"
FUSED_LAYERS = "SparseDecoder"


@dataclass(frozen=True)
class Operators:
    """The operators of this machine.

    Attributes:
        core: of OpenVINO, which knows them.
        library: of the operators.
        kernels: instruction set that they use here.
        properties: of OpenVINO, that packed models ran fastest with.
        cache: where measurements are kept; None keeps none.
    """

    core: Any
    library: Path
    kernels: str
    properties: Mapping[str, str]
    cache: Path | None

    def machine(self) -> MeasurementPlace:
        """What a measurement holds for."""
        import openvino

        return MeasurementPlace(
            processor=str(self.core.get_property(CPU, "FULL_DEVICE_NAME")),
            kernels=self.kernels,
            library=_digest(self.library),
            runtime=openvino.__version__,
            limits=" ".join(os.environ[name] for name in ISA_LIMITS if os.environ.get(name)),
            processors=len(os.sched_getaffinity(0)),
        )


@dataclass(frozen=True)
class LoadedIr:
    """A packed IR, ready to be compiled.

    Attributes:
        xml: the file.
        properties: to compile it with.
        choice: what is unpacked, and why.
        attention: why it is OpenVINO's own; None where it is in the layers.
        cache: precision of the keys and values that the layers keep, in OpenVINO's name; None where they keep none.
        avoided: whether `properties` ask for float32 because of the crash that is known, see `known_crash`.
    """

    xml: Path
    properties: dict[str, Any]
    choice: PackedChoice
    attention: str | None
    cache: str | None
    _core: Any = field(repr=False)
    _text: bytes | None = field(repr=False)
    avoided: bool = False

    @property
    def as_it_is(self) -> bool:
        """Whether the file is loaded unchanged."""
        return self._text is None

    def read(self) -> Any:
        """The `openvino.Model`.

        Raises:
            RuntimeError: OpenVINO cannot read it.
        """
        if self._text is None:
            return self._core.read_model(self.xml)
        # A file that lies in memory: so OpenVINO maps that of the weights itself, for as long as it reads there.
        with os.fdopen(os.memfd_create(self.xml.name), "wb") as file:
            file.write(self._text)
            file.flush()
            return self._core.read_model(f"/proc/self/fd/{file.fileno()}", str(self.xml.with_suffix(".bin")))

    def open_pipeline(self, device: str) -> Any:
        """An `openvino_genai.LLMPipeline`.

        Args:
            device: of OpenVINO.

        Raises:
            RuntimeError: OpenVINO cannot load it.
        """
        import openvino
        import openvino_genai

        directory = self.xml.parent
        # The default backend would look for OpenVINO's attention, and rewrite it.
        properties = {**({} if self.attention else {"ATTENTION_BACKEND": "SDPA"}), **self.properties}
        if self._text is None:
            return openvino_genai.LLMPipeline(directory, device, **properties)
        written = directory / "generation_config.json"
        config = openvino_genai.GenerationConfig(written) if written.is_file() else openvino_genai.GenerationConfig()
        tokenizer = openvino_genai.Tokenizer(directory)
        mapped = map_weights(self.xml.with_suffix(".bin"))
        weights = openvino.Tensor(as_writeable(mapped), shared_memory=True)
        pipeline = openvino_genai.LLMPipeline(self._text.decode(), weights, tokenizer, device, config, **properties)
        # It may read there as long as it lives, and does not say so.
        weakref.finalize(pipeline, _let_go, mapped).atexit = False
        return pipeline

    @contextmanager
    def directory(self) -> Iterator[Path]:
        """A directory with this model, for what takes nothing else: its own, or one with links to its files and the
        text alone written.

        Raises:
            OSError: there is no room for the text.
        """
        if self._text is None:
            yield self.xml.parent
            return
        with tempfile.TemporaryDirectory(prefix="shearling-") as made:
            for file in self.xml.parent.resolve().iterdir():
                if file.name != self.xml.name:
                    (Path(made) / file.name).symlink_to(file)
            (Path(made) / self.xml.name).write_bytes(self._text)
            yield Path(made)

    def write(self, output: Path) -> None:
        """Write a directory with this model and the files beside it, complete or not at all.

        Args:
            output: does not exist.

        Raises:
            FileExistsError: it does.
            OSError: there is no room.
        """
        if output.exists():
            raise FileExistsError(f"{output} exists")
        with self.directory() as directory, tempfile.TemporaryDirectory(dir=output.parent, prefix=".") as made:
            copy = shutil.copytree(directory, Path(made) / "model")
            # Of the temporary directory it would have a mode that shuts all others out.
            copy.chmod(self.xml.parent.stat().st_mode & 0o777 | stat.S_IRWXU)
            copy.replace(output)


def load_ir(
    xml: Path,
    operators: Operators,
    *,
    device: str = CPU,
    properties: Mapping[str, Any],
    packed_properties: Mapping[str, Any] | None = None,
    obstacle: str | None = None,
    measure: Stopwatch | None = None,
) -> LoadedIr:
    """Decide how a packed IR is loaded: which operators stay packed (`packed_choice`), and where attention is.

    Args:
        xml: the model; its weights are beside it.
        operators: of this machine.
        device: of OpenVINO; only the CPU has the operators, so everything is unpacked for another one.
        properties: of the compilation or the pipeline, as they were asked for; `PACKED` among them makes the choice,
            and EXECUTION_MODE_HINT=ACCURACY leaves activations in f32.
        packed_properties: the same where something stays packed; None adds the preferred ones of the operators.
        obstacle: why attention may not go into the layers of a decoder; None where it may.
        measure: in place of OpenVINO.

    Raises:
        OSError: a file cannot be read.
        RuntimeError: OpenVINO cannot read it.
        UnknownChoice: `PACKED` has another value than it can have; `WrittenOtherwise` is one.
        MalformedText: an operator that shall be unpacked, or measured, lies about itself.
        DiesInBf16: bf16 was asked for, and would end the process.
    """
    import openvino

    word = chosen(properties) if device == CPU else "never"
    own = without_choice(properties)
    preferred = {**operators.properties, **own} if packed_properties is None else without_choice(packed_properties)
    try:
        text, weights = IrText(xml.read_bytes()), map_weights(xml.with_suffix(".bin"))
        exact = _asks_for_accuracy(own)
        if exact:
            multiply_exactly(text, (*WEIGHTS_PORT, FUSED_LAYERS))
        found = find_operators(text, weights)
    except MalformedText as fault:
        # OpenVINO and the operators say what is wrong with it, if anything.
        return LoadedIr(xml, preferred, PackedChoice(), f"its text is strange: {fault}", None, operators.core, None)
    if fused := text.layers_of([FUSED_LAYERS]):
        _require_kept(word, own, device=device, cache=kept_cache(text, fused[0]), obstacle=obstacle)
        changed = text.to_bytes() if exact else None
        return LoadedIr(xml, preferred, PackedChoice(), None, kept_cache(text, fused[0]), operators.core, changed)
    machine = operators.machine()
    stopwatch = measure or ForwardStopwatch(
        operators.core,
        text,
        weights,
        machine=machine,
        packed=preferred,
        stock=own,
        cache=operators.cache,
    )
    rows = TOKEN_ROWS if text.layers_of(["ReadValue"]) else TEXT_ROWS
    choice = choose(found, word, measure=stopwatch, rows=rows)
    expand(text, choice.expanded)
    attention, cache = obstacle or _obstacle(choice, own, device=device), _cache_precision(own)
    if attention is None:
        attention = fuse_decoder(text, operators.core.read_model(xml), _read_configuration(xml), cache=cache)
    unpack(text, choice.unpacked)
    wanted = own if choice.stock and not machine.limits else preferred
    survived = survivable(text, wanted, device=device, release=openvino.__version__)
    return LoadedIr(
        xml=xml,
        properties=survived,
        choice=choice,
        attention=attention,
        cache=cache if attention is None else None,
        _core=operators.core,
        _text=text.to_bytes() if choice.changes_anything or attention is None or exact else None,
        avoided=survived != wanted,
    )


def _require_kept(
    word: str, properties: Mapping[str, Any], *, device: str, cache: str | None, obstacle: str | None
) -> None:
    """Refuse what a model that was written with attention in its layers cannot do: nothing in it can be changed.

    Raises:
        WrittenOtherwise: names it.
    """
    if device != CPU:
        asked = f"{device} has no such operators"
    elif word in ("never", "expanded"):
        asked = f"{PACKED}={word} asks for other layers"
    elif CACHE_PRECISION in properties and _cache_precision(properties) != cache:
        asked = f"{CACHE_PRECISION}={_cache_precision(properties)} asks for another cache than {cache}"
    elif obstacle is not None:
        asked = obstacle
    elif rounding := _rounds_angles(properties):
        asked = rounding
    else:
        return
    raise WrittenOtherwise(
        f"it was written with attention in its layers, and {asked}: load the export that it was written from"
    )


def _obstacle(choice: PackedChoice, properties: Mapping[str, Any], *, device: str) -> str | None:
    if device != CPU:
        return f"{device} has no such operators"
    if asked := sorted(STOCK_ATTENTION & set(properties)):
        return f"{asked[0]} asks for it"
    if _cache_precision(properties) not in CACHE_TYPES:
        return f"{CACHE_PRECISION} asks for it"
    if rounding := _rounds_angles(properties):
        return rounding
    return "its layers are unpacked" if any(item.kind == LAYERS for item in choice.unpacked) else None


def _rounds_angles(properties: Mapping[str, Any]) -> str | None:
    """In bf16 OpenVINO leaves the angles of positions in f32, in f16 only where it finds the operation that turns by
    them, which is in the layers here: logits at positions of 3,000 were off by a tenth and more.
    """
    asked = _type_name(properties.get(PRECISION_HINT, "f32"))
    return f"{PRECISION_HINT}={asked} rounds the angles of positions" if asked == "f16" else None


def _asks_for_accuracy(properties: Mapping[str, Any]) -> bool:
    """OpenVINO's word for what rounds nothing to be faster; a text, or its own type."""
    mode = properties.get(EXECUTION_MODE, "")
    return str(getattr(mode, "name", mode)).upper() == "ACCURACY"


def _cache_precision(properties: Mapping[str, Any]) -> str:
    """In OpenVINO's name."""
    return _type_name(properties.get(CACHE_PRECISION, "f16"))


def _type_name(value: Any) -> str:
    """Of a text, or of OpenVINO's type."""
    return str(value.get_type_name() if hasattr(value, "get_type_name") else value)


def _read_configuration(xml: Path) -> dict[str, Any]:
    """What the config.json beside an IR says; nothing where there is none."""
    path = xml.with_name("config.json")
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


@functools.cache
def _digest(library: Path) -> str:
    return hashlib.sha256(library.read_bytes()).hexdigest()


def map_weights(path: Path) -> npt.NDArray[np.uint8]:
    """The bytes of a weights file, read when they are needed.

    While they are held, so are the blocks of a file that is deleted.
    """
    return np.memmap(path, np.uint8, mode="r") if path.stat().st_size else np.zeros(0, np.uint8)


def _let_go(weights: npt.NDArray[np.uint8]) -> None:
    """The last to hold them."""
