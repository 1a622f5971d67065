"""What is decided of a quantization before any work, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from export.quantization.settings import DEFAULT_GROUP_SIZE, SAMPLES, Quantization, plan_quantization
from export.quantization.text import CalibrationText, find_text, windows_of
from shearling.errors import DocumentInvalid, UsageError
from shearling.evaluation.task import TaskRow, write_rows
from tests.support.tiny_models import tiny_tokenizer

ROW = TaskRow(id="0", prompt="the cat sat on the mat and", choices=None, gold=None, completion=" purred", text="")


@pytest.fixture
def task(tmp_path: Path) -> Path:
    directory = tmp_path / "task"
    directory.mkdir()
    write_rows(directory, "train", [ROW] * 4)
    return directory


@pytest.fixture
def nowhere(tmp_path: Path) -> Path:
    return tmp_path / "no-task"


def test_by_default_a_run_is_calibrated_on_its_rows_and_a_lone_model_is_not(task: Path, nowhere: Path) -> None:
    planned = plan_quantization(Quantization(), weight_format="int4", task=task, head="language_model")
    assert planned is not None
    assert (planned.preset, planned.group_size, planned.narrower) == ("balanced", DEFAULT_GROUP_SIZE, True)
    assert planned.text.names == ("task",)
    assert planned.tuning_steps == 0
    assert plan_quantization(Quantization(), weight_format="int4", task=nowhere, head="language_model") is None
    assert plan_quantization(Quantization(), weight_format="int8", task=task, head="language_model") is None
    assert plan_quantization(Quantization("fast"), weight_format="int4", task=task, head="language_model") is None


def test_a_lone_model_is_calibrated_on_a_file(nowhere: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("words")
    asked = Quantization("best", group_size=32, dataset=(str(text),), samples=5)
    planned = plan_quantization(asked, weight_format="int4", task=nowhere, head="language_model")
    assert planned is not None
    assert (planned.group_size, planned.narrower, planned.samples) == (32, False, 5)
    assert planned.tuning_steps > 0
    assert planned.describe() == {
        "quantization": "best",
        "group_size": 32,
        "dataset": [str(text)],
        "all_layers": False,
        "ratio": 1.0,
    }


def test_algorithms_of_nncf_are_asked_for_instead_of_a_preset(task: Path) -> None:
    asked = Quantization(awq=True, gptq=True, group_size=64, ratio=0.8)
    planned = plan_quantization(asked, weight_format="int4", task=task, head="language_model")
    assert planned is not None
    assert (planned.preset, planned.algorithms, planned.tuning_steps) == (None, ("awq", "gptq"), 0)
    assert (planned.group_size, planned.narrower, planned.ratio, planned.samples) == (64, False, 0.8, SAMPLES)
    assert planned.describe()["quantization"] == "NNCF's AWQ, GPTQ"
    assert list(asked.asked_for) == ["--group-size", "--ratio", "--awq", "--gptq"]
    alone = plan_quantization(
        Quantization(scale_estimation=True), weight_format="int4", task=task, head="language_model"
    )
    assert alone is not None
    assert alone.describe()["quantization"] == "NNCF's scale estimation"


@pytest.mark.parametrize(
    ("asked", "where", "message"),
    [
        (Quantization("fast", awq=True), "--awq", "fast rounds in its own way, and AWQ is one of NNCF's"),
        (Quantization("balanced", scale_estimation=True), "--scale-estimation", "balanced rounds in its own way"),
        (Quantization("best", gptq=True), "--gptq", "best rounds in its own way, and GPTQ"),
        (Quantization(ratio=0.0, gptq=True), "--ratio", "nothing would be in int4, which GPTQ is for"),
        (Quantization(dataset=("none.txt",), gptq=True), "--dataset", "no such text"),
    ],
)
def test_what_does_not_go_with_algorithms_of_nncf_is_refused(
    asked: Quantization, where: str, message: str, task: Path
) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        plan_quantization(asked, weight_format="int4", task=task, head="language_model")
    assert raised.value.where == where
    assert raised.value.remedy


@pytest.mark.parametrize(
    ("asked", "weight_format", "message"),
    [
        (Quantization(awq=True), "int8", "it is for int4, and the weights will be int8"),
        (Quantization(scale_estimation=True), "fp32", "it is for int4"),
        (Quantization(gptq=True), "int4", "there is no text to calibrate on"),
        (Quantization(awq=True), "int4", "there is no text to calibrate on"),
        (Quantization("best"), "int8", "it is for int4, and the weights will be int8"),
        (Quantization(group_size=32), "fp32", "it is for int4"),
        (Quantization("fast", group_size=32), "int4", "fast rounds without data"),
        (Quantization("fast", all_layers=True), "int4", "fast rounds without data"),
        (Quantization("balanced"), "int4", "there is no text to calibrate on"),
        (Quantization(samples=3), "int4", "there is no text to calibrate on"),
        (Quantization(dataset=("task",)), "int4", "there are no training rows"),
        (Quantization(dataset=("none.txt",)), "int4", "no such text: none.txt"),
        (Quantization(dataset=()), "int4", "no text is named"),
    ],
)
def test_what_cannot_be_is_refused(asked: Quantization, weight_format: str, message: str, nowhere: Path) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        plan_quantization(asked, weight_format=weight_format, task=nowhere, head="language_model")
    assert raised.value.remedy


def test_each_text_is_a_stream_of_its_own(task: Path, tmp_path: Path) -> None:
    lines, plain = tmp_path / "a.jsonl", tmp_path / "b.txt"
    lines.write_text("".join(json.dumps({"text": "the dog ran in the park all day"}) + "\n" for _ in range(3)))
    plain.write_text("zebra " * 20)
    text = find_text(("task", str(lines), str(plain)), task)
    assert isinstance(text, CalibrationText)
    tokenizer = tiny_tokenizer()
    rows, parsed, raw = text.streams(tokenizer)
    end = tokenizer.eos_token_id
    assert rows.tolist() == [*tokenizer(ROW.prompt + ROW.completion)["input_ids"], end] * 4
    assert parsed.tolist() == [*tokenizer("the dog ran in the park all day")["input_ids"], end] * 3
    assert raw.tolist() == [*tokenizer("zebra " * 20)["input_ids"], end]


def test_lines_without_the_key_are_named(nowhere: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "x"}\n')
    text = find_text((str(path),), nowhere)
    assert text is not None
    with pytest.raises(DocumentInvalid, match="'text'"):
        text.streams(tiny_tokenizer())


def test_a_classifier_is_rounded_on_what_it_reads(task: Path) -> None:
    text = CalibrationText(("task",), task)
    (whole,), (prompts,) = (text.streams(tiny_tokenizer(), classifies=classifies) for classifies in (False, True))
    assert len(prompts) == len(whole) - 4 * len(tiny_tokenizer()(ROW.completion)["input_ids"])


def test_a_classifier_has_no_vocabulary_to_round(task: Path) -> None:
    with pytest.raises(UsageError, match="no head over a vocabulary") as raised:
        plan_quantization(Quantization(all_layers=True), weight_format="int4", task=task, head="classifier")
    assert raised.value.where == "--all-layers"


def test_a_short_text_does_not_shorten_the_windows_of_the_others(tmp_path: Path) -> None:
    short, shorter, long = (str(tmp_path / f"{name}.txt") for name in ("short", "shorter", "long"))
    for path, words in ((short, 60), (shorter, 30), (long, 600)):
        Path(path).write_text("the cat " * (words // 2))
    tokenizer = tiny_tokenizer()
    with pytest.raises(UsageError, match=r"short\.txt has \d+ tokens, a window has 128"):
        CalibrationText((long, short), None).streams(tokenizer)
    streams = CalibrationText((short, shorter), None).streams(tokenizer)
    assert {len(window) for window in windows_of(streams, 4, seed=0)} == {len(streams[1])}
