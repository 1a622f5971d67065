"""Searches on several workers find the same as one process, whatever happens to the workers and to the search."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from search.front import BestRule
from search.journal import read_journal
from search.measuring import WorkersObjective
from search.objective import SubnetObjective
from search.opening import open_inputs, open_run
from search.piece_store import read_pieces
from search.pieces import Piece, PieceOutcome, cut, join
from search.stage import search
from shearling.artefact import open_artefact
from shearling.errors import ArtefactMismatch, ArtefactMissing, NoCandidate, UsageError
from shearling.executors.executor import Workforce
from shearling.run import Run
from tests.support.documents import ROOT
from tests.support.mixed_runs import RATIOS, mixed_run
from tests.support.ray_clusters import ray_cluster
from tests.support.small_searches import SMALL_SEARCH
from tests.support.tiny_runs import tiny_recipe

SETTINGS = dataclasses.replace(SMALL_SEARCH, evaluations=9, limit=None)
ROWS_OF_A_PIECE = 8
NOTHING_MEETS = BestRule(min_accuracy=1.5)
"""Leaves an unfinished search with all its evaluations."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    from train.stage import run_recipe

    directory = tmp_path_factory.mktemp("trained")
    run_recipe(tiny_recipe(directory, rows=200), directory / "run")
    return directory / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Run:
    return Run(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several pieces a candidate, so that they are split between workers."""
    monkeypatch.setattr("search.pieces.PIECE_ROWS", ROWS_OF_A_PIECE)


@pytest.fixture(scope="module")
def alone(trained: Path, tmp_path_factory) -> Run:
    """The run, searched by one process with one thread."""
    run = Run(shutil.copytree(trained, tmp_path_factory.mktemp("alone") / "run"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("search.pieces.PIECE_ROWS", ROWS_OF_A_PIECE)
        search(run, SETTINGS, BestRule(), workforce=Workforce(threads=1))
    return run


def found(run: Run) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The journal and best.json, without what a clock says."""
    journal = [json.loads(line) for line in (run.search / "journal.jsonl").read_text().splitlines()]
    best = json.loads((run.search / "best.json").read_text())
    del best["created"], best["metrics"]["seconds"]
    return [{key: line[key] for key in line.keys() - {"seconds"}} for line in journal], best


def unfinished(run: Run) -> Path:
    return run.search.with_name(".search.partial")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Piece]:
    """Every piece that is measured in this process from here on."""
    pieces: list[Piece] = []
    original = SubnetObjective.measure

    def counting(self: SubnetObjective, piece: Piece):
        pieces.append(piece)
        return original(self, piece)

    monkeypatch.setattr(SubnetObjective, "measure", counting)
    return pieces


def test_processes_find_the_same_as_one(run: Run, alone: Run) -> None:
    search(run, SETTINGS, BestRule(), workforce=Workforce(executor="processes", workers=2))
    assert found(run) == found(alone)
    assert set(open_artefact(run.search, kind="search").manifest.files) == {
        path.name for path in alone.search.iterdir() if path.name != "manifest.json"
    }


@pytest.mark.slow
def test_a_search_on_workers_that_is_killed_ends_as_one_that_is_not(run: Run, alone: Run) -> None:
    options = ["--run", str(run.path), "--executor", "processes", "--workers", "2", "--cost", "adapter_params"]
    code = (
        f"import search.pieces; search.pieces.PIECE_ROWS = {ROWS_OF_A_PIECE}\n"
        "from search.__main__ import app; from shearling.command_line import run_command\n"
        "if __name__ == '__main__': run_command(app, program='search')\n"
    )
    leader = run.path.parent / "leader.py"
    leader.write_text(code)
    given = {name: getattr(SETTINGS, name) for name in ("algorithm", "evaluations", "population", "precision")}
    options += [word for name, value in given.items() for word in (f"--{name}", str(value))]
    options += ["--batch-size", str(SETTINGS.batch_size)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for wanted in (3, 25):
        process = subprocess.Popen(
            [sys.executable, str(leader), *options],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        pieces = unfinished(run) / "pieces.jsonl"
        until_s = time.monotonic() + 120
        while not pieces.is_file() or pieces.read_bytes().count(b"\n") < wanted:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < until_s
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = [(line.choice_idx, line.rows_sha256) for line in read_pieces(pieces)]
    assert len(kept) >= 25
    assert len(kept) == len(set(kept)), "a piece was measured twice"
    done = subprocess.run(
        [sys.executable, str(leader), *options], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    journal, best = found(run)
    expected, expected_best = found(alone)
    # The command takes the tokens of a forward from the recipe; they decide what is counted, not what is measured.
    for line in [*journal, *expected, best["metrics"], expected_best["metrics"]]:
        line.pop("macs_m"), line.pop("macs_seq_len", None)
    assert (journal, best) == (expected, expected_best)


def test_another_batch_size_continues_the_journal(run: Run, measured: list[Piece]) -> None:
    with pytest.raises(NoCandidate):
        search(run, SETTINGS, NOTHING_MEETS)
    journal = (unfinished(run) / "journal.jsonl").read_bytes()
    measured.clear()
    search(run, dataclasses.replace(SETTINGS, batch_size=3), BestRule())
    assert (run.search / "journal.jsonl").read_bytes().startswith(journal)
    explored = {record.choice_idx: record.n_eval for record in read_journal(run.search / "journal.jsonl")[:1]}
    assert all(piece.start >= min(explored.values()) for piece in measured)


def test_another_search_sets_the_journal_aside_and_measures_nothing_again(run: Run, measured: list[Piece]) -> None:
    with pytest.raises(NoCandidate):
        search(run, SETTINGS, NOTHING_MEETS)
    journal, before = (unfinished(run) / "journal.jsonl").read_bytes(), set(measured)
    measured.clear()
    others = dataclasses.replace(SETTINGS, algorithm="random", seed=5, cost="macs")
    search(run, others, BestRule())
    assert (run.search / "journal-1.jsonl").read_bytes() == journal
    assert not before & set(measured)
    assert before, "the first search measured something"
    again = Run(run.path.with_name("again"))
    shutil.copytree(run.path, again.path, ignore=shutil.ignore_patterns("search"))
    search(again, others, BestRule())
    assert found(run) == found(again)


def test_evaluations_of_another_question_are_not_left_behind_unasked(run: Run) -> None:
    with pytest.raises(NoCandidate):
        search(run, SETTINGS, NOTHING_MEETS)
    before = {path.name: path.read_bytes() for path in unfinished(run).iterdir()}
    other, asked = dataclasses.replace(SETTINGS, precision="bf16"), []
    with pytest.raises(
        UsageError, match=r"an unfinished search of this run has \d+ evaluations.*--start-over"
    ) as caught:
        search(run, other, BestRule())
    assert caught.value.exit_code == 2
    assert {path.name: path.read_bytes() for path in unfinished(run).iterdir()} == before
    with pytest.raises(NoCandidate):
        search(run, other, NOTHING_MEETS, consent=lambda lost: asked.append(lost) is None)
    assert len(asked) == 1
    assert (unfinished(run) / "journal-1.jsonl").read_bytes() == before["journal.jsonl"]
    # Back to the first question: its pieces are there still.
    with pytest.raises(NoCandidate):
        search(run, SETTINGS, NOTHING_MEETS)
    assert (unfinished(run) / "journal-2.jsonl").is_file()
    assert (unfinished(run) / "journal.jsonl").read_bytes() == before["journal.jsonl"]


def test_pieces_of_another_version_are_set_aside(run: Run) -> None:
    with pytest.raises(NoCandidate):
        search(run, SETTINGS, NOTHING_MEETS)
    pieces, settings = unfinished(run) / "pieces.jsonl", unfinished(run) / "settings.json"
    older = pieces.read_text().replace('"seconds"', '"latency_ms":null,"seconds"')
    pieces.write_text(older)
    settings.write_text(settings.read_text().replace("costs are counted", "costs are measured"))
    with pytest.raises(UsageError, match="--start-over"):
        search(run, SETTINGS, BestRule())
    search(run, SETTINGS, BestRule(), consent=lambda _: True)
    assert (run.search / "pieces-1.jsonl").read_text() == older
    assert (run.search / "journal-1.jsonl").is_file()


def test_a_worker_refuses_a_run_that_it_cannot_read_or_that_is_another(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(run: Run):
        raise PermissionError(13, "Permission denied", str(run.super_adapter))

    inputs = open_inputs(open_run(run), task=None)
    work = WorkersObjective.of(SETTINGS, inputs, Workforce(executor="processes"), task_sha256="0" * 64)
    assert dataclasses.asdict(work)["threads"] == 1
    with pytest.raises(ArtefactMissing, match=r"a worker cannot read the run: no super_adapter.*Let every node see"):
        dataclasses.replace(work, run=tmp_path / "not mounted")()
    with monkeypatch.context() as patch:
        patch.setattr("search.measuring.open_run", denied)
        with pytest.raises(ArtefactMissing, match="a worker cannot read the run: PermissionError"):
            work()
    others = {**work.parents, "super_adapter": "0" * 64}
    with pytest.raises(ArtefactMismatch, match="the super_adapter of a worker has another content"):
        dataclasses.replace(work, parents=others)()
    with pytest.raises(ArtefactMismatch, match="the task of a worker has another content"):
        work()


def test_pieces_cover_the_rows_and_join_to_the_whole() -> None:
    pieces = cut((1, 2), range(5, 30))
    assert [position for piece in pieces for position in piece.positions] == list(range(5, 30))
    assert {len(piece.positions) for piece in pieces[:-1]} == {ROWS_OF_A_PIECE}
    assert cut((0,), range(3, 3)) == []
    parts = [
        PieceOutcome(1.0, 0.0, 0.25, (1.0, 1.0), (0.25, 0.25), 1.0),
        PieceOutcome(0.0, 0.0, 1.0, (0.0,), (1.0,), 2.0),
    ]
    whole = join(parts)
    assert (whole.accuracy, whole.loss, whole.answers) == (2 / 3, 0.5, (1.0, 1.0, 0.0))
    assert whole.seconds == 3.0
    # Standard deviation over the root of the count.
    assert whole.accuracy_stderr == pytest.approx((1 / 3 / 3) ** 0.5)
    # A loss is of all rows.
    without = join([parts[0], dataclasses.replace(parts[1], loss=None, losses=None)])
    assert (without.loss, without.losses, without.accuracy) == (None, None, 2 / 3)


@pytest.fixture(scope="module")
def received(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the workers of `on_ray` put what they are sent."""
    return tmp_path_factory.mktemp("received")


@pytest.fixture(scope="module")
def on_ray(received: Path) -> Iterator[Workforce]:
    """Workers on a cluster of two nodes. The tests on it are the last of this module, so that it ends with them."""
    pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(received))
        # Ray's own sockets need a short path.
        patch.setenv("RAY_TMPDIR", "/tmp")
        with ray_cluster(cpus=1) as cluster:
            yield Workforce(executor="ray", workers=2, address=cluster.address)


quiet_ray = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::FutureWarning:ray"
)
"""What Ray leaves behind is not what these tests are about."""


@pytest.fixture
def cut_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Workers do not see the run."""
    original = WorkersObjective.of
    monkeypatch.setattr(
        WorkersObjective,
        "of",
        lambda *given, **options: dataclasses.replace(original(*given, **options), run=tmp_path / "not mounted"),
    )


@pytest.mark.slow
@quiet_ray
def test_a_ray_cluster_finds_the_same_as_one(run: Run, alone: Run, on_ray: Workforce) -> None:
    search(run, SETTINGS, BestRule(), workforce=on_ray)
    assert found(run) == found(alone)


@pytest.mark.slow
@pytest.mark.usefixtures("cut_off")
@quiet_ray
def test_nodes_that_do_not_see_the_run_are_sent_it(
    run: Run, alone: Run, on_ray: Workforce, received: Path, capfd: pytest.CaptureFixture
) -> None:
    search(run, SETTINGS, BestRule(), workforce=on_ray)
    assert list(received.glob("shearling-*")) == []
    assert "a node does not see the run: its files are sent" in capfd.readouterr().err
    assert found(run) == found(alone)


@pytest.mark.slow
@pytest.mark.usefixtures("cut_off")
@quiet_ray
def test_nodes_that_are_sent_a_run_with_variants_read_them_when_a_layer_takes_one(
    on_ray: Workforce, received: Path, tmp_path: Path
) -> None:
    mixed = mixed_run(tmp_path / "mixed")
    here = Run(shutil.copytree(mixed.path, tmp_path / "here"))
    settings = dataclasses.replace(SETTINGS, ratios=RATIOS, evaluations=4)
    search(here, settings, BestRule(), workforce=Workforce(threads=1))
    search(mixed, settings, BestRule(), workforce=on_ray)
    assert list(received.glob("shearling-*")) == []
    assert found(mixed) == found(here)
