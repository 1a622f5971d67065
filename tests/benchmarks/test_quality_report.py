"""The report of the benchmark of quality, from cells made by hand."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.kept_cells import cell_file
from benchmarks.quality.__main__ import main
from benchmarks.quality.arms import BASELINE, parse_ratio, ratio_title
from benchmarks.quality.cell import CellDocument
from benchmarks.quality.summary import Row, judge_predictions, summarise
from shearling.evaluation.confidence import wilson_interval
from shearling.strict_json import write_document
from tests.support.quality_cells import cell_document, subnet_figures

DENSE = {("a", 0): 0.80, ("a", 1): 0.84, ("b", 0): 0.60, ("b", 1): 0.62}
WANDA = {("a", 0): 0.78, ("a", 1): 0.81, ("b", 0): 0.56, ("b", 1): 0.61}


def cells() -> list[CellDocument]:
    dense = [
        cell_document("m", BASELINE, task, subnet_figures(accuracy, bits_per_byte=1.1), seed=seed)
        for (task, seed), accuracy in DENSE.items()
    ]
    wanda = [
        cell_document("m", "wanda", task, subnet_figures(accuracy), ratio="0.5", seed=seed, before=1.05)
        for (task, seed), accuracy in WANDA.items()
    ]
    elastic = [
        cell_document(
            "m",
            "wanda-elastic",
            "a",
            subnet_figures(0.79, subnet="searched", predicted=0.81 if ratio == "2:4" else 0.95),
            subnet_figures(0.78, subnet="packed"),
            subnet_figures(0.77),
            subnet_figures(0.78, subnet="heuristic"),
            ratio=ratio,
            seed=5,
        )
        for ratio in ("2:4", "0.7")
    ]
    return [*elastic, *wanda, *dense]


def row(arm: str, ratio: str = "0.5", subnet: str = "largest") -> Row:
    found = [row for row in summarise(cells()) if (row.key.arm, row.key.ratio, row.key.subnet) == (arm, ratio, subnet)]
    assert len(found) == 1
    return found[0]


def test_what_others_serve_is_told_against_the_baseline(tmp_path: Path) -> None:
    figures = [subnet_figures(accuracy, subnet=name) for name, accuracy in (("largest", 0.8), ("Q8_0", 0.79))]
    write(tmp_path, [cell_document("m", BASELINE, "a", *figures)])
    assert main(["--output", str(tmp_path), "--report"]) == 0
    text = (tmp_path / "report.md").read_text()
    assert "dense, LoRA, taught: largest | 1 | 80.0 |  |" in text
    assert "dense, LoRA, taught: Q8_0 | 1 | 79.0 | -1.0 |" in text


def test_differences_are_told_by_task_and_bits_as_a_share_of_the_baselines(tmp_path: Path) -> None:
    write(tmp_path, cells())
    assert main(["--output", str(tmp_path), "--report"]) == 0
    text = (tmp_path / "report.md").read_text()
    # Of a -2 and -3 points, of b -4 and -1; 1.2 bits for 1.1.
    assert "| 50 % | Wanda | -2.5 ± 0.5 | -2.5 ± 1.5 | +9 |" in text
    assert row("wanda").more_bits == pytest.approx(1.2 / 1.1 - 1)
    assert row("wanda-elastic", "0.7").more_bits is None, "another seed"
    assert not any(line.startswith("|  | dense, LoRA, taught: largest | +") for line in text.splitlines())


def test_rows_are_in_order() -> None:
    assert [(row.key.ratio, row.key.arm, row.key.subnet) for row in summarise(cells())] == [
        ("", BASELINE, "largest"),
        ("0.5", "wanda", "largest"),
        ("0.7", "wanda-elastic", "largest"),
        ("0.7", "wanda-elastic", "heuristic"),
        ("0.7", "wanda-elastic", "searched"),
        ("0.7", "wanda-elastic", "packed"),
        ("2:4", "wanda-elastic", "largest"),
        ("2:4", "wanda-elastic", "heuristic"),
        ("2:4", "wanda-elastic", "searched"),
        ("2:4", "wanda-elastic", "packed"),
    ]


def test_means_and_errors_are_over_seeds() -> None:
    wanda = row("wanda")
    by_seed = [statistics.fmean([WANDA["a", seed], WANDA["b", seed]]) for seed in (0, 1)]
    assert wanda.cells == 4
    assert wanda.accuracy.mean == pytest.approx(statistics.fmean(by_seed))
    assert wanda.accuracy.stderr == pytest.approx(abs(by_seed[0] - by_seed[1]) / 2)
    assert wanda.minutes == pytest.approx(2.0)
    assert (wanda.before, wanda.after) == pytest.approx((1.05, 1.2))


def test_what_was_trained_no_further_has_no_bits_per_byte_before_training(tmp_path: Path) -> None:
    names = ("adapted", "frozen", "largest", "packed")
    figures = [subnet_figures(0.8, subnet=name, bits_per_byte=1.5 + 0.1 * place) for place, name in enumerate(names)]
    write(tmp_path, [cell_document("m", "adapted-elastic", "a", *figures, ratio="0.5", before=1.6)])
    assert main(["--output", str(tmp_path), "--report"]) == 0
    report = (tmp_path / "report.md").read_text()
    for name, shown in zip(names, ("1.500", "1.600", "1.600 1.700", "1.600 1.800"), strict=True):
        [line] = [line for line in report.splitlines() if f"elastic: {name} | 1 |" in line]
        assert f"| {shown} |" in line


def test_the_difference_is_of_the_same_tasks_and_seeds() -> None:
    by_seed = [statistics.fmean([WANDA[task, seed] - DENSE[task, seed] for task in "ab"]) for seed in (0, 1)]
    difference = row("wanda").difference
    assert difference is not None
    assert difference.mean == pytest.approx(statistics.fmean(by_seed))
    assert difference.stderr == pytest.approx(statistics.stdev(by_seed) / math.sqrt(2))


def test_seeds_of_other_tasks_have_no_error_and_what_has_a_baseline_is_counted() -> None:
    lone = cell_document("m", "wanda", "a", subnet_figures(0.7), ratio="0.5", seed=7)
    [found] = [row for row in summarise([*cells(), lone]) if row.key.arm == "wanda" and row.key.subnet == "largest"]
    assert (found.cells, len(found.paired)) == (5, 4)
    assert found.accuracy.stderr is None
    assert found.difference is not None
    assert found.difference.stderr is not None


def test_without_a_baseline_of_the_same_seed_there_is_no_difference() -> None:
    assert row("wanda-elastic", "0.7", "searched").difference is None
    assert row("wanda-elastic", "0.7", "searched").accuracy.stderr is None


def test_the_lora_that_an_arm_began_with_is_a_baseline_too() -> None:
    begun = cell_document(
        "m", "adapted-elastic", "a", subnet_figures(0.8, subnet="adapted"), subnet_figures(0.79), ratio="0.5", seed=3
    )
    found = {(row.key.arm, row.key.subnet): row for row in summarise([*cells(), begun])}
    difference = found["adapted-elastic", "largest"].difference
    assert difference is not None
    assert difference.mean == pytest.approx(-0.01)
    # What began with it is held against it, though the same training ended elsewhere in another precision.
    own = cell_document("m", BASELINE, "a", subnet_figures(0.9), seed=3)
    other = cell_document("m", "adapted-elastic", "a", subnet_figures(0.82, subnet="adapted"), ratio="2:4", seed=3)
    plain = cell_document("m", "wanda", "a", subnet_figures(0.7), ratio="0.5", seed=3)
    found = {(row.key.arm, row.key.subnet): row for row in summarise([own, begun, other, plain])}
    for key, expected in ((("adapted-elastic", "largest"), -0.01), (("wanda", "largest"), -0.2)):
        difference = found[key].difference
        assert difference is not None
        assert difference.mean == pytest.approx(expected)


def test_a_task_has_the_interval_of_its_rows() -> None:
    score = row("wanda").tasks["a"]
    mean = statistics.fmean([WANDA["a", 0], WANDA["a", 1]])
    assert score.accuracy.mean == pytest.approx(mean)
    assert score.seeds == 2
    assert score.interval == pytest.approx(wilson_interval(mean, 100))


def test_an_encoder_has_no_bits_per_byte() -> None:
    encoder = cell_document("m", BASELINE, "a", subnet_figures(0.9, bits_per_byte=None), before=None)
    [only] = summarise([encoder])
    assert (only.before, only.after) == (None, None)


def test_predictions_are_held_against_test_rows() -> None:
    predictions = judge_predictions(cells())
    assert predictions is not None
    # 0.79 lies within the interval of 81 of 100 rows, and outside of that of 95.
    assert (predictions.searches, predictions.covered) == (2, 1)
    assert predictions.bias == pytest.approx((0.02 + 0.16) / 2)
    assert judge_predictions(cell for cell in cells() if cell.arm == "wanda") is None


@pytest.mark.parametrize(("text", "title"), [("0.5", "50 %"), ("0.700", "70 %"), ("2:4", "2:4")])
def test_ratios_are_shown_in_percent(text: str, title: str) -> None:
    assert parse_ratio(text).title == title
    assert not ratio_title("")


def write(output: Path, documents: Sequence[CellDocument] | None = None) -> None:
    (output / "cells").mkdir(parents=True)
    for number, cell in enumerate(documents or cells()):
        write_document(cell_file(output, str(number)), cell)


def test_the_report_is_written_and_fits_a_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path)
    assert main(["--output", str(tmp_path), "--report"]) == 0
    screen = capsys.readouterr().out
    assert max(map(len, screen.splitlines())) <= 80
    assert "Wanda, elastic: searched" in screen
    report = (tmp_path / "report.md").read_text()
    assert "in 1 of 2 searches; predicted minus found: +9.0 points" in " ".join(report.split())
    assert "| 50 % | Wanda | 4 | 69.0 | -2.5 ± 0.5 | 1.050 1.200 | 2.0 |" in report
    (low, high), (other_low, other_high) = (wilson_interval(accuracy, 100) for accuracy in (0.795, 0.585))
    by_task = f"79.5 ± 1.5 ({low:.1%} to {high:.1%}) | 58.5 ± 2.5 ({other_low:.1%} to {other_high:.1%})"
    assert f"| 50 % | Wanda | {by_task.replace('%', '')} |" in report
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "m.svg").read_text()


def test_the_same_cells_give_the_same_picture(tmp_path: Path) -> None:
    pictures = []
    for name in ("first", "second"):
        write(tmp_path / name)
        assert main(["--output", str(tmp_path / name), "--report"]) == 0
        pictures.append((tmp_path / name / "m.svg").read_bytes())
    assert pictures[0] == pictures[1]


def test_a_report_of_nothing_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--output", str(tmp_path), "--report"]) == 3
    assert "no finished cell" in capsys.readouterr().err
