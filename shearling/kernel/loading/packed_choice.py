"""Whether packed operators stay packed on this machine: measured, once for every form of them, processor and build.

A product of packed weights reads fewer bytes and computes more. Which of the two decides differs between processors, so
a part of the model's own operators is run here as it is packed, with its zeros put back into the packed form, and as
the runtime's own; the fastest is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .dense_form import can_unpack, unpack
from .ir_text import IrText, Source
from .packed_operator import PackedOperator, contradictions, expand, find_operators

PACKED = "PACKED"
"""Property of a deployment: one of `CHOICES`."""
CHOICES = ("always", "expanded", "measured", "never")
VARIABLE = "SHEARLING_PACKED"
"""Environment variable with the choice where no property makes it."""
LAYERS = "SparseLayer"
TOLERANCE = 1.05
"""The runtime's own operators take the place of ours where they are faster by more than this."""
EXPANSION_GAIN = 1.25
"""So many times as fast must products be with their zeros put back: they take the memory of dense weights, and are
bound by its bandwidth, which differed by a third from hour to hour on one shared machine."""
LEAST_BYTES = 4 << 20
"""Weights of all operators of one group together, unpacked. Fewer take microseconds, and are not measured."""
CACHED_BYTES = 16 << 20
"""Of the weights of one form that would be measured by itself."""
SAMPLE_BYTES = 64 << 20
"""Of the weights that are run: more than caches hold, since a token reads all of a model."""
OWN = "OpenVINO's own"
LEAST_ROUNDS, MOST_ROUNDS, SECONDS = 5, 40, 0.4
TOKEN_ROWS, TEXT_ROWS = 1, 64
"""Rows of activations: a token of a decoder, a text of a classifier."""
MEASURED_PROPERTIES = frozenset(
    {"INFERENCE_PRECISION_HINT", "DYNAMIC_QUANTIZATION_GROUP_SIZE", "INFERENCE_NUM_THREADS", "PERFORMANCE_HINT"}
)
"""Properties of a compilation that change how fast operators are."""


class UnknownChoice(ValueError):
    """`PACKED` is none of `CHOICES`."""


class WrittenOtherwise(UnknownChoice):
    """What is asked for cannot be of a model that was written with attention in its layers."""


Way = Literal["packed", "expanded", "dense"]


@dataclass(frozen=True)
class Timing:
    """How long some operators take, all of them once.

    Attributes:
        packed_s: as they are.
        dense_s: as the runtime's own, with the properties of packed models.
        stock_s: as the runtime's own, with its own properties; None where it refuses these.
        expanded_s: packed, with the zeros put back; None where there are none.
    """

    packed_s: float
    dense_s: float
    stock_s: float | None
    expanded_s: float | None = None

    @property
    def way(self) -> Way:
        """The fastest, as long as it is worth what it takes."""
        seconds = self._seconds()
        if seconds["packed"] <= min(EXPANSION_GAIN * seconds["expanded"], TOLERANCE * seconds["dense"]):
            return "packed"
        return "expanded" if seconds["expanded"] <= TOLERANCE * seconds["dense"] else "dense"

    @property
    def best_s(self) -> float:
        """Of that way."""
        return self._seconds()[self.way]

    def _seconds(self) -> dict[Way, float]:
        expanded_s = float("inf") if self.expanded_s is None else self.expanded_s
        return {"packed": self.packed_s, "expanded": expanded_s, "dense": self.dense_s}

    def scaled(self, factor: float) -> Timing:
        """Of so many times as many operators."""
        stock_s = None if self.stock_s is None else self.stock_s * factor
        expanded_s = None if self.expanded_s is None else self.expanded_s * factor
        return Timing(self.packed_s * factor, self.dense_s * factor, stock_s, expanded_s)


@dataclass(frozen=True)
class MeasurementPlace:
    """What a measurement holds for.

    Attributes:
        processor: its name.
        kernels: instruction set of the packed operators.
        library: digest of their build.
        runtime: version of OpenVINO.
        limits: what the environment says of instruction sets. With any, OpenVINO's own choice of a precision is not
            to be trusted: 2026.4 takes bf16 where it is limited to AVX2, and ends the process.
        processors: that this process may use.
    """

    processor: str
    kernels: str
    library: str
    runtime: str
    limits: str
    processors: int


@dataclass(frozen=True)
class PackedChoice:
    """What becomes of a model.

    Attributes:
        unpacked: the operators that the runtime's own replace.
        expanded: those that put their zeros back when they are loaded.
        stock: whether nothing stays packed, and the runtime's own properties are the best.
        reason: in words; None where everything stays packed without a look.
    """

    unpacked: tuple[PackedOperator, ...] = ()
    stock: bool = False
    reason: str | None = None
    expanded: tuple[PackedOperator, ...] = ()

    @property
    def changes_anything(self) -> bool:
        """Whether the model is not loaded as it is stored."""
        return bool(self.unpacked or self.expanded)


Stopwatch = Callable[[Sequence[PackedOperator], int], Timing]
"""Measures operators with so many rows of activations."""


def chosen(properties: Mapping[str, Any]) -> str:
    """How a deployment is to be loaded: its property, else the environment's word, else `measured`.

    Raises:
        UnknownChoice: it is none of `CHOICES`.
    """
    word = str(properties.get(PACKED) or os.environ.get(VARIABLE) or "measured")
    if word not in CHOICES:
        raise UnknownChoice(f"{PACKED} is {word!r}, not one of {', '.join(CHOICES)}")
    return word


def without_choice(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Those that OpenVINO knows."""
    return {name: value for name, value in properties.items() if name != PACKED}


def stock_properties(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a model without packed operators, of which no choice says anything.

    Raises:
        UnknownChoice: `PACKED` is none of `CHOICES`.
    """
    chosen(properties)
    return without_choice(properties)


def choose(
    operators: Sequence[PackedOperator], word: str, *, measure: Stopwatch, rows: int = TOKEN_ROWS
) -> PackedChoice:
    """Decide for every operator of a model.

    Args:
        operators: of the model.
        word: one of `CHOICES`.
        measure: asked for each group of operators that is large enough to be measured.
        rows: of activations, as the model mostly has them.

    Raises:
        MalformedText: an operator lies about itself.
        RuntimeError: OpenVINO cannot run a packed operator.
    """
    if word == "expanded":
        sparse = [operator for operator in operators if operator.leaves_zeros_out]
        return PackedChoice(expanded=_complete(sparse, operators), reason="zeros put back, as asked for")
    able = [operator for operator in operators if can_unpack(operator)]
    if word == "always" or not able:
        return PackedChoice()
    whole = len(able) == len(operators)
    if word == "never":
        return PackedChoice(_complete(able, able), whole, "unpacked, as asked for")
    measured = [_measure(group, rows, measure) for group in _groups(able) if _bytes(group) >= LEAST_BYTES]
    return _decide(measured, operators, able) if measured else PackedChoice()


def _groups(operators: Sequence[PackedOperator]) -> list[list[PackedOperator]]:
    """Operators of one form; by kind those whose weights caches could hold, as those of elastic widths.

    Layers are one group whatever their forms: attention goes into all of them or none.
    """
    forms: dict[str, list[PackedOperator]] = {}
    for operator in operators:
        # An embedding reads single rows, and goes where its head goes.
        if operator.kind != "SparseEmbedding":
            forms.setdefault(operator.form, []).append(operator)
    groups: dict[str, list[PackedOperator]] = {}
    for form, members in forms.items():
        kind = members[0].kind
        alone = kind != LAYERS and _bytes(members) >= CACHED_BYTES
        groups.setdefault(form if alone else kind, []).extend(members)
    return list(groups.values())


@dataclass(frozen=True)
class _Measured:
    """All operators of one group, and how long they take."""

    operators: list[PackedOperator]
    timing: Timing


def _measure(group: list[PackedOperator], rows: int, measure: Stopwatch) -> _Measured:
    sampled = sample(group)
    return _Measured(group, measure(sampled, rows).scaled(_bytes(group) / _bytes(sampled)))


def _decide(
    measured: Sequence[_Measured], operators: Sequence[PackedOperator], able: Sequence[PackedOperator]
) -> PackedChoice:
    packed_s = sum(form.timing.packed_s for form in measured)
    best_s = sum(form.timing.best_s for form in measured)
    stock_s = _stock_s(measured) if len(able) == len(operators) else None
    if stock_s is not None and best_s > TOLERANCE * stock_s:
        return PackedChoice(_complete(able, able), True, _words("unpacked", packed_s, stock_s))

    def going(way: Way) -> tuple[PackedOperator, ...]:
        found = [operator for form in measured if form.timing.way == way for operator in form.operators]
        return _complete(found, able)

    # What is too small to be measured is not worth two ways of computing.
    everything = all(form.timing.way == "dense" for form in measured)
    unpacked, expanded = _complete(able, able) if everything else going("dense"), going("expanded")
    if not unpacked and not expanded:
        dense_s = sum(form.timing.dense_s for form in measured)
        other_s = dense_s if stock_s is None else min(dense_s, stock_s)
        return PackedChoice(reason=_words("packed", packed_s, other_s))
    told = {"unpacked": unpacked, "with their zeros put back": expanded}
    outcome = ", ".join(
        what if len(those) == len(operators) else f"{len(those)} of {len(operators)} {what}"
        for what, those in told.items()
        if those
    )
    reason = _words(outcome, packed_s, best_s, "these" if expanded else OWN)
    return PackedChoice(unpacked, False, reason, expanded)


def _stock_s(measured: Sequence[_Measured]) -> float | None:
    """Of all forms with the runtime's own properties, if it takes them for each."""
    known = [form.timing.stock_s for form in measured if form.timing.stock_s is not None]
    return sum(known) if len(known) == len(measured) else None


def _complete(chosen_ones: Sequence[PackedOperator], able: Sequence[PackedOperator]) -> tuple[PackedOperator, ...]:
    """With what reads the same weights, so that none is held twice."""
    weights = {operator.weights for operator in chosen_ones}
    return tuple(operator for operator in able if operator.weights in weights)


def _words(outcome: str, packed_s: float, other_s: float, other: str = OWN) -> str:
    return f"{outcome}: packed products take {packed_s / other_s:.2f} times as long as {other} here"


def sample(operators: Sequence[PackedOperator]) -> list[PackedOperator]:
    """The first of some operators, with more weights than caches hold, or all."""
    total, taken = 0, []
    for operator in operators:
        taken.append(operator)
        total += _bytes([operator])
        if total >= SAMPLE_BYTES:
            break
    return taken


def _bytes(operators: Sequence[PackedOperator]) -> int:
    return sum(part.unpacked_bytes for operator in operators for part in operator.parts)


class ForwardStopwatch:
    """Runs operators in OpenVINO; what they take is kept in the user's cache.

    Args:
        core: knows the operators.
        text: of the IR.
        weights: bytes of its file.
        machine: what a measurement holds for.
        packed: properties of a compilation where something is packed.
        stock: where nothing is.
        cache: directory of measurements; None keeps none.
        clock: seconds.
    """

    def __init__(
        self,
        core: Any,
        text: IrText,
        weights: npt.NDArray[np.uint8],
        *,
        machine: MeasurementPlace,
        packed: Mapping[str, Any],
        stock: Mapping[str, Any],
        cache: Path | None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._core, self._text, self._weights = core, text, weights
        self._machine, self._cache, self._clock = machine, cache, clock
        self._packed, self._stock = _measured_properties(packed), _measured_properties(stock)

    def __call__(self, operators: Sequence[PackedOperator], rows: int) -> Timing:
        """See `Stopwatch`."""
        place = self._place(operators, rows)
        if place is not None and (kept := _read(place)) is not None:
            return kept
        timing = self.measure(operators, rows)
        if place is not None:
            _write(place, timing)
        return timing

    def measure(self, operators: Sequence[PackedOperator], rows: int) -> Timing:
        """Time operators side by side, the fastest of some interleaved runs of each.

        Raises:
            RuntimeError: OpenVINO cannot run them packed.
        """
        packed, dense = self._part(operators), self._part(operators)
        unpack(dense, find_operators(dense, self._weights))
        unpacked = self._model(dense)
        runs = {"packed_s": self._request(self._model(packed)), "dense_s": self._request(unpacked)}
        if any(operator.leaves_zeros_out for operator in operators):
            expanded = self._part(operators)
            expand(expanded, find_operators(expanded, self._weights))
            runs["expanded_s"] = self._request(self._model(expanded))
        if not self._machine.limits:
            with contextlib.suppress(RuntimeError):
                runs["stock_s"] = self._request(unpacked, self._stock)
        times_s = self._fastest_s(runs, rows)
        optional = {name: times_s.get(name) for name in ("stock_s", "expanded_s")}
        return Timing(times_s["packed_s"], times_s["dense_s"], **optional)

    def _fastest_s(self, runs: Mapping[str, Any], rows: int) -> dict[str, float]:
        """Of some interleaved runs of each request."""
        for run in runs.values():
            # The tensors stay: what is timed takes and makes no arrays, for many small operators half of the time.
            run.infer({port: _activations(port, rows) for port in run.model_inputs})
        best_s = dict.fromkeys(runs, float("inf"))
        ends_s, rounds = self._clock() + SECONDS, 0
        while rounds < LEAST_ROUNDS or (rounds < MOST_ROUNDS and self._clock() < ends_s):
            for name, run in runs.items():
                started_s = self._clock()
                run.start_async()
                run.wait()
                best_s[name] = min(best_s[name], self._clock() - started_s)
            rounds += 1
        return best_s

    def _model(self, part: IrText) -> Any:
        import openvino

        return self._core.read_model(part.to_bytes(), openvino.Tensor(as_writeable(self._weights), shared_memory=True))

    def _request(self, model: Any, properties: Mapping[str, str] | None = None) -> Any:
        """With the properties of packed models unless others are given."""
        asked = self._packed if properties is None else properties
        return self._core.compile_model(model, "CPU", dict(asked)).create_infer_request()

    def _part(self, operators: Sequence[PackedOperator]) -> IrText:
        """Some operators of the text, each fed by parameters of its own."""
        part = IrText()
        for operator in operators:
            with contradictions():
                inputs = [_parameter(part, width) for width in _widths(operator)]
                place = self._text.data(operator.weights.layer)
                size = int(place["size"])
                weights = part.stored("u8", (size,), int(place["offset"]))
                inputs.insert(_weights_port(operator), weights)
                for output in part.copy_of(self._text, operator.number, inputs):
                    part.add("Result", [output], {}, version="opset1", outputs=0)
        return part

    def _place(self, operators: Sequence[PackedOperator], rows: int) -> Path | None:
        if self._cache is None:
            return None
        facts = {
            "machine": asdict(self._machine),
            "forms": [operator.form for operator in operators],
            "rows": rows,
            "properties": [self._packed, self._stock],
        }
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
        return self._cache / f"{key}.json"


def _measured_properties(properties: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in properties.items() if name in MEASURED_PROPERTIES}


def _parameter(part: IrText, width: int) -> Source:
    data = {"shape": f"?,?,{width}", "element_type": "f32"}
    return part.add("Parameter", [], data, version="opset1")[0]


def _widths(operator: PackedOperator) -> list[int]:
    """Of the activations that an operator reads."""
    columns = int(operator.data["columns"])
    if operator.kind == "SparseLayer":
        return [columns, int(operator.data["hidden"])]
    return [columns, operator.rows[0]] if operator.flag("residual") and operator.kind == "SparseLinear" else [columns]


def _weights_port(operator: PackedOperator) -> int:
    return 2 if operator.kind == "SparseLayer" else 1


def _activations(port: Any, rows: int) -> npt.NDArray[np.float32]:
    width = port.get_partial_shape()[2].get_length()
    return np.random.default_rng(0).standard_normal((1, rows, width), dtype=np.float32)


def as_writeable(weights: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The same memory for OpenVINO, which takes no array that cannot be written, and does not write this one."""
    import ctypes

    return np.ctypeslib.as_array((ctypes.c_uint8 * weights.size).from_address(weights.ctypes.data))


def _read(place: Path) -> Timing | None:
    """What was measured before; None where there is nothing that can be read."""
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
        optional = {name: None if found[name] is None else float(found[name]) for name in ("stock_s", "expanded_s")}
        timing = Timing(float(found["packed_s"]), float(found["dense_s"]), **optional)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    times_s = (seconds for seconds in asdict(timing).values() if seconds is not None)
    return timing if all(0.0 < seconds < float("inf") for seconds in times_s) else None


def _write(place: Path, timing: Timing) -> None:
    """Keep a measurement, whole or not at all; where the cache cannot be written, the next load measures again."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=place.parent, suffix=".tmp", delete=False, encoding="utf-8") as file:
            json.dump(asdict(timing), file)
        Path(file.name).replace(place)
    except OSError:
        pass
