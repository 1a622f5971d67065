"""The journal survives whatever happens to the process, and refuses what happened to the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from search.journal import Journal, Record, read_journal
from shearling.errors import ArtefactMismatch, DocumentInvalid
from tests.support.synthetic_search import Separable, run


def content(path: Path) -> list[dict[str, object]]:
    return [
        {name: value for name, value in json.loads(line).items() if name != "seconds"}
        for line in path.read_text().splitlines()
    ]


@pytest.mark.parametrize("algorithm", ["random", "hill_climbing", "nsga2"])
@pytest.mark.parametrize("stop_after", [0, 1, 7, 13])
def test_interrupted_and_resumed_equals_uninterrupted(algorithm: str, stop_after: int, tmp_path: Path) -> None:
    whole = Separable()
    run(tmp_path / "whole", whole, algorithm)
    first, second = Separable(stop_after=stop_after), Separable()
    if len(whole.measured) > stop_after:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "parts", first, algorithm)
    run(tmp_path / "parts", second, algorithm)
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()
    assert first.measured + second.measured == whole.measured


def test_a_truncated_last_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "j"
    run(path, Separable(), "nsga2")
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for cut in (1, 50, len(lines[-1]) - 1):
        path.write_bytes(b"".join(lines[:-1]) + lines[-1][:cut])
        objective = Separable()
        run(path, objective, "nsga2")
        assert path.read_bytes() == whole
        assert len(objective.measured) == 1


def test_a_larger_budget_continues_a_smaller_one(tmp_path: Path) -> None:
    small, large = Separable(), Separable()
    run(tmp_path / "j", small, "nsga2", evaluations=12)
    run(tmp_path / "j", large, "nsga2", evaluations=24)
    run(tmp_path / "whole", Separable(), "nsga2", evaluations=24)
    assert content(tmp_path / "j") == content(tmp_path / "whole")


def test_another_search_cannot_continue_a_journal(tmp_path: Path) -> None:
    run(tmp_path / "j", Separable(), "random", seed=0)
    with pytest.raises(ArtefactMismatch, match=r"row 0 holds another candidate.*remove this file"):
        run(tmp_path / "j", Separable(), "random", seed=1)
    with pytest.raises(ArtefactMismatch, match="holds 24 evaluations, this search ends after 4"):
        run(tmp_path / "j", Separable(), "random", seed=0, evaluations=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: line.replace(b'"accuracy":', b'"acuracy":'), "line 3.*acuracy"),
        (lambda line: line.replace(b'"i":2', b'"i":5'), "line 3.*expected 2"),
        (lambda line: b"{}\n", "line 3.*i: Field required"),
        (lambda line: b"\n", "line 3.*empty"),
        (lambda line: line.replace(b'"loss":null', b'"loss":NaN'), "line 3.*NaN is not JSON"),
        (lambda line: line.replace(b"{", b'{"i":2,', 1), "line 3.*duplicate key 'i'"),
    ],
)
def test_a_damaged_line_in_the_middle_is_refused(change, message: str, tmp_path: Path) -> None:
    path = tmp_path / "j"
    run(path, Separable(), "random")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], change(lines[2]), *lines[3:]]))
    with pytest.raises(DocumentInvalid, match=message):
        read_journal(path)


def test_a_journal_from_before_answers_were_kept_still_opens(tmp_path: Path) -> None:
    path = tmp_path / "j"
    records = run(path, Separable(), "random", evaluations=3)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    old = [{key: line[key] for key in line.keys() - {"part", "answers", "losses"}} for line in lines]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in old))
    assert read_journal(path) == [record.model_copy(update={"answers": None}) for record in records]


def test_every_record_is_on_the_disk_before_the_next_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "j"

    class Watching(Separable):
        def measure(self, indices):
            lines = path.read_bytes().splitlines() if path.exists() else []
            assert len(lines) == len(self.measured)
            return super().measure(indices)

    run(path, Watching(), "hill_climbing")
    assert len(Journal(path).records) > 1
    assert all(isinstance(record, Record) for record in Journal(path).records)
