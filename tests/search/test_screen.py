"""What a search says: what it chose, beside what it might have kept, on both kinds of rows."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from search.evidence import find_held_back
from search.front import BestRule, find_largest
from search.journal import Journal
from search.screen import summarise
from search.stage import Searched
from shearling.command_line import Result
from shearling.evaluation.confidence import wilson_interval
from tests.support.simulated_search import SimulatedRows, simulate


def searched(tmp_path: Path, accuracies: tuple[float, ...], rule: BestRule, *, rows: int = 400) -> Searched:
    simulated = SimulatedRows(accuracies, np.random.default_rng(0), rows=rows)
    journal = Journal(tmp_path / "journal.jsonl")
    best = simulate(simulated, rule, journal).best
    words = rule.words("adapter_params")
    return Searched(Path("runs/demo/search"), journal.records, best, (1,), "headlines_validation", words)


def printed(result: Result) -> str:
    stream = io.StringIO()
    Console(file=stream, width=80).print(result.screen)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("accuracies", "rule", "roles"),
    [
        ((0.9, 0.8, 0.8), BestRule(), {"largest, best", "middle"}),
        ((0.6, 0.65, 0.9), BestRule(), {"largest", "middle", "best"}),
        ((0.9, 0.9, 0.4), BestRule(prefer="cheaper"), {"largest", "middle, best"}),
    ],
)
def test_three_roles_fit_80_columns(
    accuracies: tuple[float, ...], rule: BestRule, roles: set[str], tmp_path: Path
) -> None:
    found = searched(tmp_path, accuracies, rule)
    result = summarise(found)
    text = printed(result)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert set(result.data["compared"]) == roles
    assert all(role in text for role in roles)
    assert f"{found.best.accuracy:.1%} of {found.best.n_eval}" in text
    held_back = find_held_back(found.best, found.records)
    assert held_back is not None
    low, high = wilson_interval(held_back.accuracy, held_back.n_eval)
    assert f"{held_back.accuracy:.1%} ({100 * low:.1f}-{100 * high:.1f})" in text
    assert "python -m export --subnet runs/demo/search/best.json" in text
    json.dumps(result.data)


def test_the_difference_is_that_on_common_rows(tmp_path: Path) -> None:
    found = searched(tmp_path, (0.6, 0.65, 0.9), BestRule())
    largest = find_largest([record for record in found.records if record.n_eval == found.best.n_eval])
    assert largest is not None
    difference = f"{100 * (found.best.accuracy - largest.accuracy):+.1f} ("
    assert difference in printed(summarise(found))


def test_too_few_rows_for_a_prediction_are_named(tmp_path: Path) -> None:
    text = printed(summarise(searched(tmp_path, (0.9, 0.8, 0.8), BestRule(), rows=2)))
    assert "nothing predicts the accuracy" in " ".join(text.split())


def test_names_with_brackets_are_shown(tmp_path: Path) -> None:
    found = searched(tmp_path, (0.9, 0.8, 0.8), BestRule())
    text = printed(summarise(dataclasses.replace(found, path=Path("runs/exp[a]"))))
    assert "search runs/exp[a]:" in text
    assert "--subnet 'runs/exp[a]/best.json'" in text


def test_what_follows_exports_the_form_that_was_searched_for_where_it_stands_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = dataclasses.replace(
        searched(tmp_path, (0.9, 0.8, 0.8), BestRule()),
        path=Path("search"),
        exported_as=("--weight-format", "int8", "--sparse-kernel", "openvino"),
    )
    (tmp_path / "export").mkdir()
    text = " ".join(printed(summarise(found)).split())
    assert text.endswith("best.json --weight-format int8 --sparse-kernel openvino --force")
