"""What is slower packed is unpacked, by measurements: here injected ones, and once real ones."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from shearling.kernel import packed_speed
from shearling.kernel.library import pack_matrix
from shearling.kernel.loading import packed_choice
from shearling.kernel.loading.ir_text import IrText
from shearling.kernel.loading.packed_choice import ForwardStopwatch, MeasurementPlace, Timing, choose, chosen
from shearling.kernel.loading.packed_operator import PackedOperator, find_operators
from shearling.kernel.openvino_extension import machine_operators
from shearling.kernel.packed_format import Encoding, ValueType
from tests.support.matrices import random_matrix
from tests.support.users import without_home

SIZE = 64
MACHINE = MeasurementPlace("a processor", "avx2", "0" * 64, "2026.4.1", "", 2)


@pytest.fixture(scope="module")
def model() -> tuple[list[PackedOperator], IrText, np.ndarray]:
    """Four products of one form, two of another, a head and the embedding of the same weights; text and weights."""
    text, weights = IrText(), []
    forms = [pack_matrix(random_matrix(kind, SIZE, SIZE)) for kind in (ValueType.INT8, ValueType.INT4)]
    head = pack_matrix(random_matrix(ValueType.INT8, SIZE, SIZE), Encoding.DENSE)

    def constant(packed: np.ndarray):
        offset = sum(part.size for part in weights)
        weights.append(packed)
        return text.stored("u8", packed.shape, offset)

    (x,) = text.add("Parameter", [], {"shape": f"?,?,{SIZE}", "element_type": "f32"}, version="opset1")
    (tokens,) = text.add("Parameter", [], {"shape": "?,?", "element_type": "i64"}, version="opset1")
    sizes = {"columns": SIZE, "precision": "auto", "format_version": 1}
    linear = {"rows": [SIZE], "norm_epsilon": 0.0, "bias": False, "residual": False, **sizes}
    for packed in [forms[0]] * 4 + [forms[1]] * 2:
        text.add("SparseLinear", [x, constant(packed)], linear)
    shared = constant(head)
    text.add("SparseHead", [x, shared], {"rows": SIZE, **sizes})
    text.add("SparseEmbedding", [tokens, shared], {"rows": SIZE, **sizes})
    content = np.concatenate(weights)
    return find_operators(text, content), text, content


@pytest.fixture(autouse=True)
def _small_is_measured(monkeypatch):
    monkeypatch.setattr(packed_choice, "LEAST_BYTES", 1)
    monkeypatch.setattr(packed_choice, "CACHED_BYTES", 1)


def measuring(**of_kind: Timing):
    """Gives each kind of operator, or of weights, its time for one; remembers what it was asked for."""
    asked = []

    def measure(operators, rows):
        asked.append((len(operators), rows))
        first = operators[0]
        kind = first.kind if first.kind in of_kind else first.parts[0].kind
        scaled = [
            None if seconds is None else seconds * len(operators) for seconds in dataclasses.astuple(of_kind[kind])
        ]
        return Timing(*scaled)

    measure.asked = asked
    return measure


FASTER, SLOWER, EQUAL = Timing(1.0, 2.0, None), Timing(2.0, 1.0, None), Timing(1.04, 1.0, None)


def kinds(operators) -> list[str]:
    return [f"{operator.kind} {operator.parts[0].kind}" for operator in operators]


def test_what_is_not_slower_stays_packed(model):
    choice = choose(model[0], "measured", measure=measuring(int8=FASTER, int4=EQUAL, SparseHead=FASTER))
    assert (choice.unpacked, choice.stock) == ((), False)
    assert choice.reason == "packed: packed products take 0.59 times as long as OpenVINO's own here"


def test_every_form_is_decided_by_itself(model):
    measure = measuring(int8=FASTER, int4=SLOWER, SparseHead=FASTER)
    choice = choose(model[0], "measured", measure=measure)
    assert kinds(choice.unpacked) == ["SparseLinear int4"] * 2
    assert not choice.stock
    assert choice.reason.startswith("2 of 8 unpacked: ")
    # All of a form, and one row, as a decoder reads for a token.
    assert measure.asked == [(4, 1), (2, 1), (1, 1)]


def test_an_embedding_goes_where_its_head_goes(model):
    choice = choose(model[0], "measured", measure=measuring(int8=FASTER, int4=FASTER, SparseHead=SLOWER))
    assert kinds(choice.unpacked) == ["SparseHead int8", "SparseEmbedding int8"]


def test_where_every_form_is_slower_nothing_stays_packed(model):
    choice = choose(model[0], "measured", measure=measuring(int8=SLOWER, int4=SLOWER, SparseHead=SLOWER))
    assert len(choice.unpacked) == len(model[0])
    assert choice.reason == "unpacked: packed products take 2.00 times as long as OpenVINO's own here"


def test_zeros_are_put_back_where_that_is_fastest(model):
    """Never with what has none, nor where it is worth less than the memory."""
    int8, int4 = Timing(2.0, 1.9, None, 1.0), Timing(1.0, 1.1, None, 0.85)
    choice = choose(model[0], "measured", measure=measuring(int8=int8, int4=int4, SparseHead=SLOWER))
    assert kinds(choice.expanded) == ["SparseLinear int8"] * 4
    assert kinds(choice.unpacked) == ["SparseHead int8", "SparseEmbedding int8"]
    assert choice.reason == (
        "2 of 8 unpacked, 4 of 8 with their zeros put back: packed products take 1.71 times as long as these here"
    )
    # As fast as the runtime's own: it keeps attention in the layers.
    level = Timing(2.0, 1.0, None, 1.04)
    choice = choose(model[0][:4], "measured", measure=measuring(int8=level))
    assert (len(choice.expanded), choice.unpacked) == (4, ())
    assert choice.reason == "with their zeros put back: packed products take 1.92 times as long as these here"


def test_a_model_that_is_faster_with_the_runtimes_own_properties_is_unpacked_as_a_whole(model):
    # With those of packed models the runtime is slower, with its own it is faster.
    stock = Timing(1.0, 1.5, 0.5)
    choice = choose(model[0], "measured", measure=measuring(int8=stock, int4=stock, SparseHead=stock))
    assert len(choice.unpacked) == len(model[0])
    assert choice.stock
    # Where it does not take its own properties for one of the forms, nothing is known of the whole.
    refused = measuring(int8=stock, int4=stock, SparseHead=Timing(1.0, 1.5, None))
    assert choose(model[0], "measured", measure=refused).unpacked == ()


def test_a_choice_can_be_made_without_measuring(model):
    def measure(operators, rows):
        raise AssertionError("nothing is to be measured")

    assert not choose(model[0], "always", measure=measure).changes_anything
    expanded = choose(model[0], "expanded", measure=measure)
    assert kinds(expanded.expanded) == ["SparseLinear int8"] * 4 + ["SparseLinear int4"] * 2
    assert expanded.unpacked == ()
    never = choose(model[0], "never", measure=measure)
    assert (len(never.unpacked), never.stock) == (len(model[0]), True)


def test_small_forms_are_not_measured(model, monkeypatch):
    monkeypatch.setattr(packed_choice, "LEAST_BYTES", 3 * SIZE * SIZE)
    measure = measuring(int8=FASTER)
    choose(model[0], "measured", measure=measure)
    assert measure.asked == [(4, 1)]


def test_forms_that_a_cache_holds_are_measured_together(model, monkeypatch):
    monkeypatch.setattr(packed_choice, "CACHED_BYTES", 3 * SIZE * SIZE)
    measure = measuring(int8=FASTER, int4=SLOWER, SparseHead=SLOWER)
    choice = choose(model[0], "measured", measure=measure)
    assert measure.asked == [(4, 1), (2, 1), (1, 1)]  # the large form, and two that are alone of their kind
    monkeypatch.setattr(packed_choice, "CACHED_BYTES", 1 << 30)
    measure = measuring(int8=FASTER, int4=SLOWER, SparseHead=SLOWER)
    choice = choose(model[0], "measured", measure=measure)
    assert measure.asked == [(6, 1), (1, 1)]
    assert kinds(choice.unpacked) == ["SparseHead int8", "SparseEmbedding int8"]


def test_layers_are_decided_together(model):
    """Attention goes into all of them or none."""
    layers = [dataclasses.replace(operator, kind="SparseLayer") for operator in model[0][:6]]
    measure = measuring(SparseLayer=SLOWER)
    assert len(choose(layers, "measured", measure=measure).unpacked) == 6
    assert measure.asked == [(6, 1)]


@pytest.mark.parametrize("variable", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
def test_either_name_of_the_limit_is_seen(monkeypatch, variable):
    """What was measured under a limit says nothing of this machine without one."""
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    assert machine_operators().machine().limits == ""
    monkeypatch.setenv(variable, "AVX2")
    assert machine_operators().machine().limits == "AVX2"


def compiling_nothing(model, *, limits: str) -> ForwardStopwatch:
    """A stopwatch that notes what it would have read and compiled."""
    machine = dataclasses.replace(MACHINE, limits=limits)
    watch = ForwardStopwatch(None, model[1], model[2], machine=machine, packed={"A": 1}, stock={}, cache=None)
    watch.read, watch.compiled = [], []
    watch._model = lambda part: watch.read.append(part) or len(watch.read)
    watch._request = lambda model, properties=None: (
        watch.compiled.append(model)
        or SimpleNamespace(model_inputs=[], infer=lambda feed: None, start_async=lambda: None, wait=lambda: None)
    )
    return watch


def test_where_instructions_are_limited_the_runtimes_own_properties_are_not_tried(model):
    watch = compiling_nothing(model, limits="AVX2")
    assert watch.measure(model[0][:1], 1).stock_s is None
    assert len(watch.compiled) == 3  # as packed, with zeros put back, and as the runtime's own


def test_what_is_unpacked_is_read_once_for_both_ways_of_compiling_it(model):
    """Reading it unpacks all of its weights, a good part of a first load."""
    watch = compiling_nothing(model, limits="")
    assert watch.measure(model[0][:1], 1).stock_s is not None
    assert (len(watch.read), len(watch.compiled)) == (3, 4)


def test_a_sample_is_measured_for_all(model, monkeypatch):
    monkeypatch.setattr(packed_choice, "SAMPLE_BYTES", 2 * SIZE * SIZE)
    measure = measuring(int8=FASTER, int4=FASTER, SparseHead=Timing(1.0, 0.1, None))
    choice = choose(model[0], "measured", measure=measure)
    assert measure.asked[0] == (2, 1)
    assert choice.reason.startswith("2 of 8 unpacked: packed products take 1.15 times")


def test_the_property_comes_before_the_environment(monkeypatch):
    assert chosen({}) == "always"  # as all of these tests have it
    assert chosen({"PACKED": "never"}) == "never"
    monkeypatch.delenv("SHEARLING_PACKED")
    assert chosen({}) == "measured"
    with pytest.raises(ValueError, match="PACKED is 'yes', not one of always, expanded, measured, never"):
        chosen({"PACKED": "yes"})


def stopwatch(model, cache, machine: MeasurementPlace = MACHINE, **properties: str) -> ForwardStopwatch:
    made = ForwardStopwatch(None, model[1], model[2], machine=machine, packed={}, stock=properties, cache=cache)
    made.calls = 0

    def measure(operators, rows):
        made.calls += 1
        return Timing(1.0, 2.0, None)

    made.measure = measure
    return made


def test_a_measurement_is_kept_for_a_machine_a_build_and_its_properties(model, tmp_path):
    operators = model[0][:4]
    first = stopwatch(model, tmp_path / "packed")
    assert first(operators, 1) == first(operators, 1) == stopwatch(model, tmp_path / "packed")(operators, 1)
    assert first.calls == 1
    others = [
        stopwatch(model, tmp_path / "packed", dataclasses.replace(MACHINE, **{field.name: "another"}))
        for field in dataclasses.fields(MACHINE)
    ]
    others.append(stopwatch(model, tmp_path / "packed", INFERENCE_NUM_THREADS="2"))
    for other in others:
        other(operators, 1)
    # What has nothing to do with speed is no part of it.
    same = stopwatch(model, tmp_path / "packed", CACHE_DIR="somewhere")
    same(operators, 1)
    assert [other.calls for other in others] == [1] * len(others)
    assert same.calls == 0


@pytest.mark.parametrize("value_type", [ValueType.INT8, ValueType.INT4])
def test_where_zeros_stand_makes_another_form(value_type):
    """Of matrices of one size that store as many weights: some kernels multiply one faster than the other."""
    anywhere = random_matrix(value_type, SIZE, SIZE, keep=0.5, seed=3)
    two_of_four = random_matrix(value_type, SIZE, SIZE, keep=1.0, two_of_four=True, seed=4)
    attributes = {"rows": [SIZE], "columns": SIZE, "norm_epsilon": 0.0, "bias": False, "residual": False}
    forms = []
    for matrix in (anywhere, two_of_four):
        text, packed = IrText(), pack_matrix(matrix)
        (x,) = text.add("Parameter", [], {"shape": f"?,?,{SIZE}", "element_type": "f32"}, version="opset1")
        text.add("SparseLinear", [x, text.stored("u8", packed.shape, 0)], attributes)
        (operator,) = find_operators(text, packed)
        forms.append(operator.form)
    assert forms[1].replace(" 2:4", "") == forms[0]
    assert forms[0] != forms[1]


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"packed_s": -1, "dense_s": 1, "stock_s": null, "expanded_s": null}', '{"packed_s": 1}']
)
def test_a_damaged_measurement_is_made_again(model, tmp_path, content):
    first = stopwatch(model, tmp_path)
    first(model[0][:4], 1)
    (file,) = tmp_path.iterdir()
    file.write_text(content)
    first(model[0][:4], 1)
    assert first.calls == 2
    assert json.loads(file.read_text()) == dataclasses.asdict(Timing(1.0, 2.0, None))


def test_a_cache_that_cannot_be_written_does_not_matter(model):
    from pathlib import Path

    first = stopwatch(model, Path("/proc/none/packed"))
    assert first(model[0][:4], 1) == first(model[0][:4], 1)
    assert first.calls == 2


def test_a_user_without_a_home_measures_again(monkeypatch):
    assert machine_operators().cache is not None
    without_home(monkeypatch)
    assert machine_operators().cache is None


def test_a_real_measurement(tmp_path, monkeypatch):
    monkeypatch.setenv("SHEARLING_CACHE", str(tmp_path))
    timing = packed_speed.measure_packed_product()
    assert 0 < timing.packed_s < 10
    assert 0 < timing.dense_s < 10
    assert 0 < timing.expanded_s < 10
    (file,) = (tmp_path / "packed").iterdir()
    assert Timing(**json.loads(file.read_text())) == timing
    monkeypatch.setattr(ForwardStopwatch, "measure", None)
    assert packed_speed.measure_packed_product() == timing
