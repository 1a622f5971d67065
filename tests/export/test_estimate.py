"""What an export says that it will take: refused where it cannot fit, and measured in parts where a file cannot run."""

import json
import re
from contextlib import nullcontext
from dataclasses import replace

import pytest

import export.plan
from export.estimate import FIXED_POSITIONS, WeightSizes, estimate_export, keep_pages, parts_to_run, read_sizes
from export.formats.export_format import PlannedFormat, Storage
from export.merged_model import ask_task
from export.plan import plan_frozen
from export.quantization.settings import PlannedQuantization
from export.quantization.text import CalibrationText
from export.request import ExportRequest
from export.verification.reading import WINDOW_TOKENS, held_back_positions
from shearling.errors import ResourceExhausted
from shearling.evaluation.task import TaskRow, write_rows
from shearling.registry.export_formats import EXPORT_FORMATS
from shearling.registry.number_formats import NUMBER_FORMATS
from shearling.resources import cuda_libraries_bytes
from tests.support.tiny_models import save_tiny
from train.base.artefact import import_base

GIB = 2**30
LLAMA_8B = WeightSizes(
    parameters=8_030_000_000,
    vocabulary=2 * 128256 * 4096,
    largest=128256 * 4096,
    inner=14336 * 4096,
    widest=14336,
    rows=128256,
    stored_bytes=16_060_000_000,
)


def planned(name, weights="fp32", *, sparse=False):
    entry = EXPORT_FORMATS.get(name)
    return PlannedFormat(entry, entry.load_for("language_model")(), Storage(NUMBER_FORMATS.get(weights), sparse), name)


def estimate(*formats, positions=0):
    return estimate_export(LLAMA_8B, formats, None, merges=True, positions=positions)


def parts(room_bytes, name="openvino"):
    return parts_to_run(LLAMA_8B, planned(name), positions=FIXED_POSITIONS, room_bytes=room_bytes)


def test_a_model_of_8b_is_written_in_less_than_its_own_size():
    both = estimate(planned("hf"), planned("openvino", "int4", sparse=True))
    assert both.memory_bytes < 20 * GIB
    # The checkpoint is the merge's own; beside it the integers, and a vocabulary in eight bits.
    assert 16e9 + 4e9 < both.disk_bytes < 16e9 + 6e9
    assert estimate(planned("hf")).memory_bytes < 12 * GIB


@pytest.mark.parametrize(
    ("name", "weights", "float16", "copied"),
    [
        ("openvino", "int8", False, False),
        ("openvino", "bf16", False, False),
        ("openvino", "fp16", False, True),
        ("openvino", "fp32", False, True),
        ("openvino", "int8", True, True),
        ("openvino", "bf16", True, True),
        ("openvino", "fp16", True, True),
        ("onnx-genai", "int8", False, True),
        ("onnx-genai", "int4", True, True),
        ("onnx", "int8", True, False),
    ],
)
def test_copies_in_float32_of_half_precision_are_counted(name, weights, float16, copied):
    """Of OpenVINO's graph, which takes views of bfloat16 alone, and of that which is made for GenAI of ONNX Runtime."""
    halved = replace(LLAMA_8B, float16=float16)
    exact = replace(LLAMA_8B, stored_bytes=4 * LLAMA_8B.parameters)
    item = planned(name, weights)
    told, least = (
        estimate_export(sizes, [item], None, merges=True, positions=0).memory_bytes for sizes in (halved, exact)
    )
    assert (told > 4 * LLAMA_8B.parameters) == copied
    assert least < 4 * LLAMA_8B.parameters, "float32 is taken as it is"


def test_a_format_is_charged_for_the_libraries_that_it_loads():
    tiny = WeightSizes(parameters=1000, vocabulary=100, largest=100, inner=50, widest=5, rows=10, stored_bytes=2000)

    def memory_bytes(name, *, merges=False):
        estimated = estimate_export(tiny, [planned(name)], None, merges=merges, positions=FIXED_POSITIONS)
        return estimated.memory_bytes - cuda_libraries_bytes()

    # Peaks of a model without weights: 533 MiB, and 656 to 677 MiB where a runtime reads the file; in a new
    # environment, of whose libraries the system maps more at a time, 130 MiB more.
    assert memory_bytes("hf") == pytest.approx(663 * 2**20, rel=0.02)
    for name in ("openvino", "onnx"):
        assert memory_bytes("hf") < memory_bytes(name) == pytest.approx(797 * 2**20, rel=0.03)
        assert memory_bytes(name) < memory_bytes(name, merges=True)


@pytest.mark.parametrize(
    ("rows", "characters", "expected"),
    [(None, 0, 0), (2, 30, 20), (100, 60, WINDOW_TOKENS * (6000 // 3 // WINDOW_TOKENS)), (9, 9999, 4 * WINDOW_TOKENS)],
)
def test_no_more_text_is_expected_than_there_is(rows, characters, expected, tmp_path):
    if rows is not None:
        row = TaskRow(id="0" * 64, prompt="a" * characters, choices=None, gold=None, completion="", text="a")
        write_rows(tmp_path, "validation", [row] * rows)
    assert held_back_positions(tmp_path) == expected


def rounded_on(text, *, preset="balanced", **options):
    return PlannedQuantization(
        preset=preset,
        text=text,
        group_size=64,
        narrower=True,
        samples=64,
        tuning_steps=80 if preset == "best" else 0,
        **options,
    )


def test_what_waits_for_a_backward_is_counted():
    """Tuning keeps the weights that scales make; a model in bfloat16 is held in float32, and so is its rounded copy."""
    text, count = CalibrationText(("task",), ()), LLAMA_8B.parameters

    def memory_bytes(quantization):
        estimated = estimate_export(LLAMA_8B, [planned("openvino", "int4")], quantization, merges=True, positions=0)
        return estimated.memory_bytes

    spared, tuned = rounded_on(text, ratio=0.8), rounded_on(text, preset="best")
    everything = rounded_on(text, preset="best", all_layers=True)
    assert memory_bytes(rounded_on(text)) < memory_bytes(spared)
    assert 9 * count < memory_bytes(spared) < 10 * count
    # Logits of a step: the student's, the teacher's, and the gradient.
    logits = 3 * 4 * 8 * 128 * LLAMA_8B.rows
    assert memory_bytes(tuned) - memory_bytes(spared) == 4 * (count - LLAMA_8B.vocabulary) + logits
    assert memory_bytes(everything) - memory_bytes(spared) == 4 * count + logits


def test_what_nncf_holds_is_counted():
    """Its runtime computes in float32, whatever the weights are; GPTQ changes weights, and keeps what enters them."""
    text, count, item = CalibrationText(("task",), ()), LLAMA_8B.parameters, planned("openvino", "int4")

    def memory_bytes(*algorithms, sizes=LLAMA_8B, samples=64):
        quantization = PlannedQuantization(None, text, 64, True, samples, 0, algorithms=algorithms)
        return estimate_export(sizes, [item], quantization, merges=True, positions=0).memory_bytes

    halved, single = memory_bytes("scale_estimation"), replace(LLAMA_8B, stored_bytes=4 * count)
    assert halved - memory_bytes("scale_estimation", sizes=single) == pytest.approx(4 * count, rel=0.01)
    assert memory_bytes("awq") == halved > 9 * count
    assert memory_bytes("awq", "gptq") > 12 * count
    assert memory_bytes("gptq", samples=128) - memory_bytes("gptq") == 4 * 2 * 64 * 128 * LLAMA_8B.widest


def test_what_was_chosen_on_integers_is_merged_in_float32():
    """A base in bfloat16 is no view of its files then, and its checkpoint is twice as large."""
    count, item = LLAMA_8B.parameters, planned("openvino", "int4")
    plain, rounds = (
        estimate_export(LLAMA_8B, [item], None, merges=True, positions=0, rounds=rounds) for rounds in (False, True)
    )
    assert rounds.memory_bytes - plain.memory_bytes == pytest.approx(5 * count - LLAMA_8B.vocabulary, rel=0.01)
    assert rounds.disk_bytes - plain.disk_bytes == 4 * count - LLAMA_8B.stored_bytes
    single = replace(LLAMA_8B, stored_bytes=4 * count)
    plain, rounds = (
        estimate_export(single, [item], None, merges=True, positions=0, rounds=rounds) for rounds in (False, True)
    )
    assert rounds.memory_bytes - plain.memory_bytes == count - LLAMA_8B.vocabulary
    assert rounds.disk_bytes == plain.disk_bytes


def test_a_model_that_is_merged_in_float32_is_measured_in_parts_earlier():
    """Else the estimate would refuse what a part of the layers at a time does."""
    item = planned("openvino", "int4")

    def fits(rounds, room_bytes):
        count = parts_to_run(LLAMA_8B, item, positions=FIXED_POSITIONS, room_bytes=room_bytes, rounds=rounds)
        told = estimate_export(
            LLAMA_8B, [replace(item, parts=count)], None, merges=True, positions=FIXED_POSITIONS, rounds=rounds
        )
        return count, told.memory_bytes <= room_bytes

    whole = [room for room in range(8, 120) if fits(False, room * GIB) == (1, True)]
    # Less than the copy in float32 and the integers take beside it.
    count, fit = fits(True, whole[0] * GIB + 5 * LLAMA_8B.parameters - 2 * GIB)
    assert (count > 1, fit) == (True, True)


def test_what_is_run_takes_its_file_and_a_copy():
    written, run = (estimate(planned("openvino", "int8"), positions=count).memory_bytes for count in (0, 200))
    assert run - written > 8e9


def test_a_file_that_cannot_run_is_measured_in_parts():
    assert parts(200 * GIB) == 1
    assert parts(40 * GIB) > 2
    # Not even the vocabulary fits: parts would be no help, and the estimate refuses.
    assert parts(4 * GIB) == 1
    assert parts(4 * GIB, "hf") == 1


def test_pages_stay_where_there_is_far_more_room_than_an_export_needs():
    need, files = estimate(planned("hf")), LLAMA_8B.stored_bytes
    in_float32 = 4 * LLAMA_8B.parameters
    for merges, rounds, mapped in (
        (True, False, 2 * files),
        (False, False, 2 * files),
        (True, True, files + in_float32),
    ):
        kind = {"merges": merges, "rounds": rounds}
        assert keep_pages(need, LLAMA_8B, **kind, room_bytes=need.memory_bytes + 2 * mapped - 1) is None
        kept = keep_pages(need, LLAMA_8B, **kind, room_bytes=need.memory_bytes + 2 * mapped)
        assert kept == replace(need, memory_bytes=need.memory_bytes + mapped)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tmp_path_factory.mktemp("estimate")
    return import_base(
        save_tiny("llama_tied_gqa", directory / "source"), directory / "base", model_id="tiny/llama"
    ).path


def test_sizes_are_those_of_the_model(base):
    from shearling.model.checkpoint import load_model

    model = load_model(base)
    sizes = read_sizes(base, rows=model.config.vocab_size)
    assert sizes.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert sizes.vocabulary == model.lm_head.weight.numel()
    assert sizes.stored_bytes == 4 * sizes.parameters
    assert not sizes.float16


@pytest.mark.parametrize("ample", [True, False])
def test_an_export_gives_pages_back_only_where_memory_is_scarce(base, tmp_path, monkeypatch, ample):
    import export.stage

    given_back = []
    monkeypatch.setattr(export.stage, "pages_given_back", lambda: nullcontext(given_back.append(True)))
    request = ExportRequest(output=tmp_path / "made", formats=("hf",))
    need = plan_frozen(base, request).estimate.memory_bytes
    monkeypatch.setattr(export.plan, "available_memory_bytes", lambda: need * (100 if ample else 1))
    plan = plan_frozen(base, request)
    assert plan.keeps_pages == ample
    assert not plan_frozen(base, replace(request, verify="off")).keeps_pages
    export.stage.export_planned(plan)
    assert given_back == ([] if ample else [True])


@pytest.mark.parametrize("resource", ["memory", "disk"])
def test_what_cannot_fit_is_refused_before_anything_is_written(base, tmp_path, monkeypatch, resource):
    import shearling.resources

    if resource == "memory":
        monkeypatch.setattr(shearling.resources, "available_memory_bytes", lambda: 10**6)
        monkeypatch.setattr(export.plan, "available_memory_bytes", lambda: 10**6)
    else:
        monkeypatch.setattr(shearling.resources, "free_disk_bytes", lambda _: 10**4)
    with pytest.raises(ResourceExhausted, match=f"of {resource} needed") as caught:
        plan_frozen(base, ExportRequest(output=tmp_path / "export", formats=("hf", "openvino")))
    assert caught.value.exit_code == 4
    assert not (tmp_path / "export").exists()


def test_a_plan_says_what_it_takes(base, tmp_path):
    plan = plan_frozen(base, ExportRequest(output=tmp_path / "export", formats=("hf", "openvino")))
    facts = plan.describe()
    assert re.fullmatch(r"[\d.]+ [MG]iB", facts["memory"])
    assert facts["measured_by_layers"] == []
    assert json.dumps(facts)


@pytest.mark.parametrize(("parts", "verify", "runs"), [(1, "strict", True), (2, "strict", False), (1, "off", False)])
def test_what_is_measured_by_layers_answers_no_task(base, tmp_path, parts, verify, runs):
    request = ExportRequest(tmp_path / "out", formats=("openvino",), weight_format="int8", verify=verify)
    plan = plan_frozen(base, request)
    plan = replace(plan, formats=tuple(replace(item, parts=parts) for item in plan.formats))
    assert plan.runs_integers == runs
    if not runs:
        # Nothing is computed: there is no model here.
        assert ask_task(None, plan) is None
