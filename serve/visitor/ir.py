"""An IR in OpenVINO alone: stateful, with its cache as inputs and outputs, or without any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serve.visitor.fault import VisitorFault, last_words
from serve.visitor.greedy import TIMING_SOURCE, Integers, Rereader, decode_greedily, likeliest
from serve.visitor.ir_settings import executed_precision, make_properties, reported_settings

PAST, PRESENT = "past_key_values.", "present."
AROUND_IDS = {"attention_mask", "position_ids", "token_type_ids", "beam_idx"}
"""Inputs beside the token ids whose values follow from their number."""
OPERATOR_SET = b'version="shearling"'
CHOICE = "PACKED"
"""Property with which `shearling_runtime.pipeline` keeps operators packed, or unpacks them."""
CHOICES = ("always", "expanded", "measured", "never")
WHERE_OPERATORS_ARE = "A sparse file needs its operators there: install shearling_runtime-*.whl, of `make wheels`"


def forget_choice(properties: dict[str, Any], *, where: Path) -> None:
    """Take `PACKED` out, which says nothing of a file without our operators.

    Raises:
        VisitorFault: it is none of the choices.
    """
    word = properties.pop(CHOICE, CHOICES[0])
    if word not in CHOICES:
        raise VisitorFault(
            "UsageError", f"{CHOICE} is {word!r}, not one of {', '.join(CHOICES)}", where=where, remedy="Give another"
        )


class VisitedIr:
    """An IR of any exporter whose inputs are token ids and what follows from them.

    Args:
        xml: the file.
        options: as of `serve.runtimes.runtime.RunOptions`.
        own: properties that the user gave for this model.

    Raises:
        VisitorFault: the device is not there, the file cannot be read, or its inputs are not those of a text model.
    """

    def __init__(self, xml: Path, options: Mapping[str, Any], own: Mapping[str, str]) -> None:
        import openvino

        self._where = xml
        own = dict(own)
        if OPERATOR_SET not in xml.read_bytes():
            forget_choice(own, where=xml)
        elif CHOICE in own:
            raise VisitorFault(
                "UsageError", f"{CHOICE} is for GenAI's pipeline", where=xml, remedy="Leave it out, or --no-genai"
            )
        core, device = openvino.Core(), options["device"]
        properties = prepare_core(core, xml, options, own)
        try:
            model = core.read_model(str(xml))
            self._ids = find_ids([name_of(port) for port in model.inputs], where=xml)
            _free_lengths(model, self._ids)
            compiled = core.compile_model(model, device, properties)
        except RuntimeError as error:
            raise VisitorFault(
                "ModelUnsupported", f"OpenVINO cannot load it: {last_words(error)}", where=xml
            ) from error
        self._inputs = {name_of(port): port for port in compiled.inputs}
        self._past = [name for name in self._inputs if name.startswith(PAST)]
        outputs = [name_of(port) for port in compiled.outputs]
        self._scores = outputs.index("logits") if "logits" in outputs else 0
        self._presents = {name: place for place, name in enumerate(outputs) if name.startswith(PRESENT)}
        self._request = compiled.create_infer_request()
        self._keeps = bool(self._past) or bool(self._request.query_state())
        self._cache: dict[str, Any] = {}
        self.facts = {
            "runtime": f"OpenVINO {openvino.__version__.partition('-')[0]}",
            "provider": device,
            "precision": executed_precision(compiled),
            "settings": {**reported_settings(compiled), "cache": self._kind()},
            "timing_source": TIMING_SOURCE,
        }
        require_precision(self.facts["precision"], options)

    def generate(self, rows: Sequence[Sequence[int]], new_tokens: int) -> dict[str, Any]:
        """See `serve.visitor.greedy.decode_greedily`."""
        if not self._keeps:
            return decode_greedily(Rereader(lambda text: self._read(text, 0)).step, rows, new_tokens)
        if not self._past:
            self._request.reset_state()
        self._cache = {name: self._empty(name, len(rows)) for name in self._past}
        return decode_greedily(lambda chunk, seen: likeliest(self._read(chunk, seen)), rows, new_tokens)

    def _read(self, chunk: Integers, seen: int) -> Any:
        values = around_ids(chunk, seen, ids=self._ids)
        values.update(self._cache)
        given = {port: self._typed(name, values[name]) for name, port in self._inputs.items()}
        self._request.infer(given, share_inputs=True)
        for name, place in self._presents.items():
            past = PAST + name[len(PRESENT) :]
            if past in self._cache:
                # A copy: the next pass writes over what the request holds.
                self._cache[past] = self._request.get_output_tensor(place).data.copy()
        return self._request.get_output_tensor(self._scores).data

    def _typed(self, name: str, value: Any) -> Any:
        return np.ascontiguousarray(value, dtype=self._inputs[name].get_element_type().to_dtype())

    def _empty(self, name: str, batch: int) -> Any:
        sides = list(self._inputs[name].get_partial_shape())
        # The first free side is the batch, the other one the length.
        shape = [
            batch if place == 0 else 0 if side.is_dynamic else side.get_length() for place, side in enumerate(sides)
        ]
        return np.zeros(shape, dtype=self._inputs[name].get_element_type().to_dtype())

    def _kind(self) -> str:
        return "inputs and outputs" if self._past else "state" if self._keeps else "none: every token reads all again"


def prepare_core(core: Any, xml: Path, options: Mapping[str, Any], own: Mapping[str, str]) -> dict[str, Any]:
    """Give a core what the file needs, and find the properties that it will be compiled with.

    Raises:
        VisitorFault: the device is not there, or operators are needed and absent.
    """
    device, preferred = options["device"], None
    available = list(core.available_devices)
    if device not in available and device not in {name.partition(".")[0] for name in available}:
        raise VisitorFault(
            "DeviceUnavailable", f"OpenVINO sees no {device} here, only {', '.join(available)}", where=xml
        )
    if OPERATOR_SET in xml.read_bytes():
        preferred = _register_operators(core, xml)
    asked = make_properties(
        options["precision"], threads=options["threads"], hint=options["hint"], device=device, preferred=preferred
    )
    # An older release lacks some of these; what the user asks for by name is passed on, and refused by OpenVINO.
    known = {str(name) for name in core.get_property(device, "SUPPORTED_PROPERTIES")}
    return {**{name: value for name, value in asked.items() if name in known}, **own}


def _register_operators(core: Any, xml: Path) -> Mapping[str, str]:
    try:
        from shearling_runtime.openvino import extension, preferred_properties

        core.add_extension(extension())
    # An ImportError, a fault of that package, which is not ours to import, or a RuntimeError of OpenVINO.
    except Exception as error:
        raise VisitorFault("PackageMissing", last_words(error), where=xml, remedy=WHERE_OPERATORS_ARE) from error
    return preferred_properties()


def require_precision(executed: str, options: Mapping[str, Any]) -> None:
    """Refuse a device that does something else than was asked for.

    Raises:
        VisitorFault: it does.
    """
    asked = options["precision"]
    if asked not in ("default", executed):
        raise VisitorFault(
            "DeviceUnavailable",
            f"{options['device']} executes {executed} where {asked} was asked for",
            remedy="Use --precision fp32, or leave it at default",
        )


def name_of(port: Any) -> str:
    """What an input or output is called; the best of several names."""
    names = sorted(port.get_names())
    known = [name for name in names if name in AROUND_IDS | {"input_ids", "logits"} or name.startswith((PAST, PRESENT))]
    return str((known or names or [port.get_node().get_friendly_name()])[0])


def find_ids(names: Sequence[str], *, where: Path) -> str:
    """The input that takes the tokens.

    Raises:
        VisitorFault: there are inputs whose values nobody here knows.
    """
    rest = [name for name in names if name not in AROUND_IDS and not name.startswith(PAST)]
    ids: str | None = "input_ids" if "input_ids" in rest else rest[0] if len(rest) == 1 else None
    strange = [name for name in rest if name != ids]
    if ids is None or strange:
        raise VisitorFault(
            "ModelUnsupported",
            f"inputs that are not known: {', '.join(strange)}" if strange else "no input takes token ids",
            where=where,
            remedy="Measure a model that takes token ids, their mask, positions and cache",
        )
    return ids


def around_ids(chunk: Integers, seen: int, *, ids: str) -> dict[str, Any]:
    """Values of every input that follows from the tokens.

    Args:
        chunk: [B, S].
        seen: tokens before them.
        ids: the name of the input that takes them.
    """
    batch, length = chunk.shape
    return {
        ids: chunk,
        "attention_mask": np.ones((batch, seen + length)),
        "position_ids": np.tile(np.arange(seen, seen + length), (batch, 1)),
        "token_type_ids": np.zeros((batch, length)),
        "beam_idx": np.arange(batch),
    }


def _free_lengths(model: Any, ids: str) -> None:
    """Let a model of one fixed length take others, as far as it can."""
    if all(port.get_partial_shape().is_dynamic for port in model.inputs if name_of(port) == ids):
        return
    model.reshape({port: [-1] * len(port.get_partial_shape()) for port in model.inputs})
