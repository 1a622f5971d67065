"""`search.html`: right figures, valid at every moment, whatever becomes of the search."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from search.front import BestRule
from search.journal import Record
from search.row_split import RowSplit
from search.stage import search
from search.strategies.grid import Grid
from search.view.hypervolume import MARGIN, hypervolumes
from search.view.importance import estimate_importance
from search.view.page import Status, Subject, render_search_page, show_duration
from search.view.watch import rows_expected, rows_measured
from shearling.errors import NoCandidate
from tests.support.documents import ROOT
from tests.support.small_searches import SMALL_SEARCH
from tests.support.synthetic_search import SIZES, Separable
from tests.support.synthetic_search import run as search_synthetic
from tests.support.tiny_subnets import run_with_best

VOID = {"meta", "line", "circle", "rect", "polyline", "path"}


class Balanced(HTMLParser):
    """Refuses a page whose tags are not closed in order, or that asks for anything from outside."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.refresh: str | None = None
        self.words = ""
        self.feed(text)
        self.close()
        assert self.open == []
        assert {"html", "head", "body", "title"} <= self.seen

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        assert tag not in ("script", "link", "iframe", "img")
        assert not {"src", "srcset", "onload", "onclick"} & given.keys()
        if given.get("http-equiv") == "refresh":
            self.refresh = given["content"]
        self.seen.add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def synthetic(tmp_path: Path, **options: object) -> list[Record]:
    return search_synthetic(tmp_path / "journal.jsonl", Separable(), "nsga2", **options)


def test_the_hypervolume_is_that_of_pymoo_and_never_falls(tmp_path: Path) -> None:
    from pymoo.indicators.hv import HV

    records = synthetic(tmp_path, evaluations=36)
    found = hypervolumes(records)
    reference = MARGIN * max(record.cost for record in records)
    # pymoo minimises: the error instead of the accuracy.
    indicator = HV(ref_point=np.array([1.0, 1.0]))
    points = np.array([[record.cost / reference, 1 - record.accuracy] for record in records])
    assert found == pytest.approx([float(indicator(points[:number])) for number in range(1, len(points) + 1)])
    assert found == sorted(found)
    assert len(set(found)) > 2
    free = [record.model_copy(update={"cost_kind": "none"}) for record in records]
    assert hypervolumes(free) == pytest.approx(np.maximum.accumulate([record.accuracy for record in records]))


def test_the_importance_finds_what_accuracy_was_made_of_and_says_when_it_was_noise() -> None:
    random, grid = np.random.default_rng(0), Grid((3, 2, 4, 1, 2))
    truth = np.array([0.10, 0.0, 0.03, 0.0, -0.05])
    candidates = [tuple(int(random.integers(size)) for size in grid.sizes) for _ in range(60)]
    x = np.array(candidates) / np.maximum(1, np.array(grid.sizes) - 1)
    accuracies = 0.8 - x @ truth + 0.004 * random.standard_normal(60)
    found = estimate_importance(candidates, accuracies.tolist(), grid)
    assert found is not None
    assert np.array(found.losses) == pytest.approx(truth, abs=0.006)
    assert found.explained > 0.95
    noise = estimate_importance(candidates, (0.8 + 0.01 * random.standard_normal(60)).tolist(), grid)
    assert noise is not None
    assert noise.explained < 0.15
    assert estimate_importance(candidates[:7], accuracies[:7].tolist(), grid) is None
    assert estimate_importance(candidates, [0.5] * 60, grid) is None


def test_leaving_one_out_is_what_its_closed_form_says() -> None:
    """By fitting again without each candidate, at a penalty that the closed form does not choose."""
    random, grid = np.random.default_rng(1), Grid((2, 2, 2))
    candidates = [tuple(int(value) for value in random.integers(0, 2, 3)) for _ in range(12)]
    accuracies = [0.5 + 0.1 * sum(candidate) + 0.05 * random.standard_normal() for candidate in candidates]
    x, y = np.array(candidates, dtype=float), np.array(accuracies)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("search.view.importance.PENALTIES", np.array([0.7]))
        found = estimate_importance(candidates, accuracies, grid)
    assert found is not None
    centred = x - x.mean(axis=0)
    slopes = np.linalg.solve(centred.T @ centred + 0.7 * np.eye(3), centred.T @ (y - y.mean()))
    assert np.array(found.losses) == pytest.approx(-slopes)
    leverage = np.diag(centred @ np.linalg.solve(centred.T @ centred + 0.7 * np.eye(3), centred.T)) + 1 / 12
    errors = (y - y.mean() - centred @ slopes) / (1 - leverage)
    by_mean = [y[place] - np.delete(y, place).mean() for place in range(12)]
    assert found.explained == pytest.approx(1 - errors @ errors / np.square(by_mean).sum())


def test_the_page_shows_the_front_and_loads_itself_again_only_while_it_runs(tmp_path: Path) -> None:
    records = synthetic(tmp_path, evaluations=36)
    groups = tuple(f"layers.{place}.<qkv>" for place in range(len(SIZES)))
    subject = Subject("nsga2 on <run> & more", "headlines", groups, Grid(SIZES))
    running = Status("running", "exploring", 36, 40, 12.0, 75.0, "2026-01-01T00:00:00Z")
    page = Balanced(render_search_page(subject, running, records, None))
    assert page.refresh == "5"
    assert "nsga2 on <run> & more" in page.words
    assert "75 s left" in " ".join(page.words.split())
    assert "<qkv>" in page.words
    finished = dataclasses.replace(running, state="finished", left_s=None)
    done = Balanced(render_search_page(subject, finished, records, records[0]))
    assert done.refresh is None
    assert "left;" not in done.words
    empty = Balanced(render_search_page(subject, dataclasses.replace(running, done=0, left_s=None), [], None))
    assert "Too few different evaluations" in empty.words
    one = Balanced(render_search_page(subject, running, records[:1], None))
    assert "svg" in one.seen


def test_the_rows_that_are_left_are_those_of_the_race_and_of_the_prediction() -> None:
    split = RowSplit.of([f"{row:03d}" for row in range(120)], limit=None)
    # 80 choose: 40, 60, 80; of eight, four and the largest go on, then two and the largest; two are held back.
    assert rows_expected(split, 8) == 8 * 40 + 5 * 20 + 3 * 20 + 2 * 40
    assert [show_duration(seconds) for seconds in (5, 119, 125, 7300, 200000)] == [
        "5 s",
        "119 s",
        "2 min",
        "2 h",
        "2 d",
    ]


def test_a_search_ends_with_its_page_in_the_artefact(tmp_path: Path) -> None:
    run = run_with_best(tmp_path)
    with pytest.raises(NoCandidate):
        search(run, SMALL_SEARCH, BestRule(min_accuracy=1.5))
    stopped = Balanced(run.search_page.read_text())
    assert stopped.refresh is None
    assert "stopped" in stopped.words
    assert "accuracy >= 1.5" in stopped.words
    found = search(run, SMALL_SEARCH, BestRule())
    page = Balanced((run.search / "search.html").read_text())
    assert (page.refresh, "finished" in page.words, found.best.id in page.words) == (None, True, True)
    leading = Balanced(run.search_page.read_text())
    assert leading.refresh == "0; url=search/search.html"
    assert rows_measured(found.records) == sum(
        max(record.n_eval for record in found.records if record.choice_idx == indices and record.part != "held_back")
        for indices in {record.choice_idx for record in found.records}
    ) + sum(record.n_eval for record in found.records if record.part == "held_back")


@pytest.mark.slow
def test_the_page_is_whole_at_any_moment_and_after_a_kill(tmp_path: Path) -> None:
    run = run_with_best(tmp_path, rows=400)
    options = ["--run", str(run.path), "--evaluations", "40", "--population", "8", "--precision", "fp32"]
    process = subprocess.Popen(
        [sys.executable, "-m", "search", *options],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    journal = run.search.with_name(".search.partial") / "journal.jsonl"
    deadline_s, looked = time.monotonic() + 240, 0
    while process.poll() is None and (not journal.is_file() or journal.read_bytes().count(b"\n") < 10):
        assert time.monotonic() < deadline_s
        if run.search_page.is_file():
            assert Balanced(run.search_page.read_text()).refresh == "5"
            looked += 1
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it finished before it could be killed"
    assert looked
    page = Balanced(run.search_page.read_text())
    assert page.refresh == "5"
    assert "the same command continues it" in " ".join(page.words.split())
    left_over = run.path / ".search.html.tmp-1"
    left_over.write_text("half a page")
    done = subprocess.run([sys.executable, "-m", "search", *options], cwd=ROOT, check=False, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert not left_over.exists()
    assert Balanced((run.search / "search.html").read_text()).refresh is None
