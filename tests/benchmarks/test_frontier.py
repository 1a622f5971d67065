"""The chart of accuracy against speed: which model belongs to which accuracy, and what no other one passes."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.frontier import chart, main, place_files, place_models, table
from benchmarks.quality.cell import SubnetName
from benchmarks.quality.summary import Row, RowKey, SeedMean
from serve.bench.benchmark import BenchmarkSubject
from serve.bench.statistics import Estimate
from serve.runtimes.deployment import Deployment
from serve.runtimes.runtime import RuntimeFacts
from shearling.errors import ArtefactMismatch, ArtefactMissing
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
    assert [(place.name, place.accuracy.told) for place in places] == [
        ("Q4_0", "84.0 (82-86)"),
        ("sparse-int4", "84.0 (82-86)"),
        ("sparse-int8", "86.0 (84-88)"),
        ("lora, GROUP=0", "85.0 (83-87)"),
        ("lora", "85.0 (83-87)"),
    ]
    assert [place.runtime for place in places][:2] == ["llama.cpp", "OpenVINO"]
    # Of the whole batch.
    assert [place.tokens_per_s for place in places] == [230, 220, 200, 74, 70]


def test_the_environment_of_a_peer_is_no_part_of_its_name() -> None:
    label = "p/Q4_0.gguf@environment=p,GROUP=0"
    (place,) = place_models(board(*SCORES), [timed(label, 240, kind="gguf", property_of=True)])
    assert (place.name, place.accuracy.value) == ("Q4_0, GROUP=0", 84)
    (place,) = place_models(board(*SCORES, scored(label, 0.83)), [timed(label, 240, kind="gguf", property_of=True)])
    assert place.accuracy.value == 83


def test_what_no_other_passes_is_bold_and_on_the_line() -> None:
    places = place_models(board(*SCORES), SUBJECTS)
    bold = [line.split("**")[1] for line in table(places, measure="%").splitlines() if "**" in line]
    # As accurate as Q4_0 and slower is passed; slower and more accurate is not.
    assert bold == ["Q4_0", "sparse-int8"]
    drawing = ElementTree.fromstring(chart(places, ours=("sparse-int8", "sparse-int4"), measure="%"))
    lines = [element for element in drawing.iter() if element.tag.endswith("polyline")]
    assert len(lines) == 1
    assert len(lines[0].attrib["points"].split()) == len(bold)
    ours = [element for element in drawing.iter() if element.attrib.get("class") == "dot ours"]
    assert len(ours) == 2


def test_equal_models_do_not_pass_each_other() -> None:
    places = place_models(board(SCORES[1]), [SUBJECTS[0], SUBJECTS[0]])
    assert table(places, measure="%").count("**lora**") == 2


def test_a_model_without_accuracy_and_two_tasks_are_refused() -> None:
    with pytest.raises(ArtefactMismatch, match="accuracy is not there"):
        place_models(board(*SCORES[:2]), SUBJECTS)
    with pytest.raises(ArtefactMismatch, match="one task"):
        place_models(board(*SCORES, scored("x/lora", 0.9, task="other")), SUBJECTS)


NINE = frozenset((task, seed) for task in ("poker", "sarcasm", "stories") for seed in range(3))


def row(subnet: SubnetName, points: float, *, paired: frozenset[tuple[str, int]] = NINE) -> Row:
    return Row(
        key=RowKey("smollm2", "", "a", subnet),
        cells=9,
        paired=paired,
        accuracy=SeedMean(0.88, 0.01),
        difference=SeedMean(points / 100, 0.002) if paired else None,
        before=None,
        after=1.5,
        more_bits=None,
        minutes=1.0,
        tasks={},
    )


ROWS = (
    row("openvino-int8", 0.04),
    row("packed", 0.71),
    row("packed-int4", -0.3),
    row("Q4_0", -1.0),
    row("searched", 9),
)
FILES = {"lora": "openvino-int8", "sparse-int8": "packed", "sparse-int4": "packed-int4"}


def test_a_timed_file_stands_for_those_of_all_cells() -> None:
    places = place_files(ROWS, SUBJECTS, FILES)
    assert [(place.name, place.accuracy.told) for place in places] == [
        ("Q4_0", "-1.0 ± 0.2"),
        ("sparse-int4", "-0.3 ± 0.2"),
        ("sparse-int8", "+0.7 ± 0.2"),
        ("lora, GROUP=0", "+0.0 ± 0.2"),
        ("lora", "+0.0 ± 0.2"),
    ]
    # One with a property may stand for another file than the one without.
    other = place_files(ROWS, SUBJECTS, {**FILES, "lora, GROUP=0": "Q4_0"})
    assert other[3].accuracy.value == -1.0
    assert "| **sparse-int8** |" in table(places, measure="points")


def test_means_of_other_cells_and_files_that_they_lack_are_refused() -> None:
    with pytest.raises(ArtefactMissing, match="no file lora with a baseline"):
        place_files(ROWS, SUBJECTS, {})
    with pytest.raises(ArtefactMissing, match="no file searched"):
        place_files(ROWS, SUBJECTS, {**FILES, "lora": "searched"})
    fewer = frozenset({("poker", 0), ("poker", 1), ("sarcasm", 0), ("sarcasm", 1)})
    lacking = r"openvino-int8 9, Q4_0 4.*Q4_0 lacks: poker with seed 2"
    with pytest.raises(ArtefactMismatch, match=f"means of different cells: {lacking}"):
        place_files([ROWS[0], row("Q4_0", 0, paired=fewer)], SUBJECTS, FILES)
    others = frozenset((task, seed + 1) for task, seed in fewer)
    with pytest.raises(ArtefactMismatch, match="different cells: packed 4, Q4_0 4"):
        place_files([row("packed", 0, paired=fewer), row("Q4_0", 0, paired=others)], SUBJECTS, FILES)


def test_the_command_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--speed", str(tmp_path), "--ours", "sparse", "--output", str(tmp_path / "chart.svg")]
    assert main(["--accuracy", str(tmp_path / "none.json"), *options]) == 3
    assert "none.json" in capsys.readouterr().err
    assert main(["--cells", str(tmp_path), *options]) == 3
    with pytest.raises(SystemExit, match="2"):
        main(["--cells", str(tmp_path), "--file", "name", *options])
    assert "name is not NAME=FILE" in capsys.readouterr().err
    assert not (tmp_path / "chart.svg").exists()


def test_the_accuracy_of_another_format_is_refused() -> None:
    for model_format in (None, "openvino"):
        place_models(board(SCORES[0].model_copy(update={"model_format": model_format})), SUBJECTS[2:3])
    with pytest.raises(ArtefactMismatch, match="accuracy is that of torch, its speed that of openvino"):
        place_models(board(SCORES[0].model_copy(update={"model_format": "torch"})), SUBJECTS[2:3])
