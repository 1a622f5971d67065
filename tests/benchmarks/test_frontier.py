"""The chart of accuracy against speed: which model belongs to which accuracy, and what no other one passes."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.frontier import chart, main, place_models, table
from serve.bench.benchmark import BenchmarkSubject
from serve.bench.statistics import Estimate
from serve.runtimes.deployment import Deployment
from serve.runtimes.runtime import RuntimeFacts
from shearling.errors import ArtefactMismatch
from shearling.evaluation.scoreboard import Score, Scoreboard


def timed(label: str, tokens_per_s: float, *, kind: str = "openvino", property_of: bool = False) -> BenchmarkSubject:
    once = Estimate(median=1.0, low=1.0, high=1.0, samples=1)
    return BenchmarkSubject(
        deployment=Deployment(
            label=label,
            format=kind,
            directory=Path("d"),
            manifest_sha256=None,
            weights_sha256="0",
            bytes=1,
            weights_bytes=3 * 2**20,
            context_tokens=None,
            vocabulary=None,
            end_ids=(),
            properties={"GROUP": "0"} if property_of else {},
            file=Path(label.partition("@")[0]) if kind == "gguf" else None,
        ),
        facts=RuntimeFacts(runtime="r", provider="CPU", precision="fp32", settings={}, timing_source="clock"),
        import_s=once,
        load_s=once,
        memory_before_bytes=0,
        peak_memory_bytes=0,
        private_memory_bytes=0,
        huge_memory_bytes=0,
        cpus=(0,),
        nice=0,
        metrics={
            "ttft_s": Estimate(median=0.05, low=0.05, high=0.05, samples=1),
            # Of a batch of two.
            "tpot_s": Estimate(median=2 / tokens_per_s, low=0.001, high=0.1, samples=1),
            "tokens_per_s": Estimate(median=tokens_per_s, low=tokens_per_s, high=tokens_per_s, samples=1),
        },
        gap_percentiles_s={},
        ratios={},
    )


def scored(directory: str, accuracy: float, *, task: str = "t") -> Score:
    return Score(
        directory=directory,
        task=task,
        n=100,
        rows_sha256="0",
        accuracy=accuracy,
        interval=(accuracy - 0.02, accuracy + 0.02),
        loss=None,
        bits_per_byte=2.0,
        sparsity=None,
        seconds=1.0,
    )


SCORES = (
    scored("x/sparse-int8", 0.86),
    scored("x/lora", 0.85),
    scored("p/Q4_0.gguf@environment=p", 0.84),
    scored("x/sparse-int4", 0.84),
)
SUBJECTS = (
    timed("x/lora", 70),
    timed("x/lora@GROUP=0", 74, property_of=True),
    timed("x/sparse-int8", 200),
    timed("x/sparse-int4", 220),
    timed("p/Q4_0.gguf@environment=p", 230, kind="gguf"),
)


def board(*scores: Score) -> Scoreboard:
    return Scoreboard(split="test", precision="fp32", scores=scores)


def test_a_model_has_the_accuracy_of_its_own_files() -> None:
    places = place_models(board(*SCORES), SUBJECTS)
    assert [(place.name, place.score.accuracy) for place in places] == [
        ("Q4_0", 0.84),
        ("sparse-int4", 0.84),
        ("sparse-int8", 0.86),
        ("lora, GROUP=0", 0.85),
        ("lora", 0.85),
    ]
    assert [place.runtime for place in places][:2] == ["llama.cpp", "OpenVINO"]
    # Of the whole batch.
    assert [place.tokens_per_s for place in places] == [230, 220, 200, 74, 70]


def test_the_environment_of_a_peer_is_no_part_of_its_name() -> None:
    label = "p/Q4_0.gguf@environment=p,GROUP=0"
    (place,) = place_models(board(*SCORES), [timed(label, 240, kind="gguf", property_of=True)])
    assert (place.name, place.score.accuracy) == ("Q4_0, GROUP=0", 0.84)
    (place,) = place_models(board(*SCORES, scored(label, 0.83)), [timed(label, 240, kind="gguf", property_of=True)])
    assert place.score.accuracy == 0.83


def test_what_no_other_passes_is_bold_and_on_the_line() -> None:
    places = place_models(board(*SCORES), SUBJECTS)
    bold = [line.split("**")[1] for line in table(places).splitlines() if "**" in line]
    # As accurate as Q4_0 and slower is passed; slower and more accurate is not.
    assert bold == ["Q4_0", "sparse-int8"]
    drawing = ElementTree.fromstring(chart(places, ours=("sparse-int8", "sparse-int4")))
    lines = [element for element in drawing.iter() if element.tag.endswith("polyline")]
    assert len(lines) == 1
    assert len(lines[0].attrib["points"].split()) == len(bold)
    ours = [element for element in drawing.iter() if element.attrib.get("class") == "dot ours"]
    assert len(ours) == 2


def test_equal_models_do_not_pass_each_other() -> None:
    places = place_models(board(SCORES[1]), [SUBJECTS[0], SUBJECTS[0]])
    assert table(places).count("**lora**") == 2


def test_a_model_without_accuracy_and_two_tasks_are_refused() -> None:
    with pytest.raises(ArtefactMismatch, match="accuracy is not there"):
        place_models(board(*SCORES[:2]), SUBJECTS)
    with pytest.raises(ArtefactMismatch, match="one task"):
        place_models(board(*SCORES, scored("x/lora", 0.9, task="other")), SUBJECTS)


def test_the_command_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--speed", str(tmp_path), "--ours", "sparse", "--output", str(tmp_path / "chart.svg")]
    assert main(["--accuracy", str(tmp_path / "none.json"), *options]) == 3
    assert "none.json" in capsys.readouterr().err
    assert not (tmp_path / "chart.svg").exists()


def test_the_accuracy_of_another_format_is_refused() -> None:
    for model_format in (None, "openvino"):
        place_models(board(SCORES[0].model_copy(update={"model_format": model_format})), SUBJECTS[2:3])
    with pytest.raises(ArtefactMismatch, match="accuracy is that of torch, its speed that of openvino"):
        place_models(board(SCORES[0].model_copy(update={"model_format": "torch"})), SUBJECTS[2:3])
