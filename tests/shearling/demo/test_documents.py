"""What the demo reads of other stages' documents is what those stages write."""

from __future__ import annotations

import json

import pytest

from export.reporting.report import ExportReport
from search.front import pareto_document
from search.journal import Record
from serve.bench.benchmark import Benchmark
from serve.bench.forward import ForwardTime
from serve.bench.statistics import Estimate
from shearling.demo.documents import (
    BenchmarkView,
    DeploymentView,
    EnvironmentView,
    EvaluationView,
    ExportView,
    FactsView,
    ForwardTimeView,
    Spread,
    SubjectView,
    WorkloadView,
    read_losses,
)
from shearling.demo.shears.outcome import read_candidates
from shearling.errors import DocumentInvalid
from shearling.strict_json import write_json

(SUBJECT, _) = Benchmark.model_fields["subjects"].annotation.__args__

OWNERS = {
    ExportView: ExportReport,
    EvaluationView: Record,
    BenchmarkView: Benchmark,
    WorkloadView: Benchmark.model_fields["workload"].annotation,
    EnvironmentView: Benchmark.model_fields["environment"].annotation,
    SubjectView: SUBJECT,
    FactsView: SUBJECT.model_fields["facts"].annotation,
    DeploymentView: SUBJECT.model_fields["deployment"].annotation,
    ForwardTimeView: ForwardTime,
    Spread: Estimate,
}


@pytest.mark.parametrize("view", OWNERS, ids=lambda view: view.__name__)
def test_every_field_of_a_view_is_one_of_the_document(view):
    owner = OWNERS[view]
    for name, field in view.model_fields.items():
        assert name in owner.model_fields, f"{owner.__name__} has no {name}"
        if field.annotation in (str, int, float, bool):
            assert owner.model_fields[name].annotation == field.annotation, name


def _record(i: int, choice: tuple[int, ...], accuracy: float, params: int, *, cached: bool = False) -> Record:
    return Record(
        i=i,
        id=f"a-{i}",
        parent=None,
        algorithm="nsga2",
        generation=0,
        seed=0,
        choice_idx=choice,
        accuracy=accuracy,
        accuracy_stderr=None,
        loss=None,
        n_eval=10,
        eval_split_sha256="0" * 64,
        adapter_params=params,
        nonzero_params=params,
        seconds=1.0,
        cached=cached,
        pareto=True,
    )


def test_candidates_are_those_of_the_search_with_its_own_front(tmp_path, monkeypatch):
    outcomes = [((0, 0), 0.8, 30), ((1, 0), 0.8, 20), ((1, 1), 0.7, 10), ((0, 1), 0.6, 20)]
    records = [_record(i, *outcome) for i, outcome in enumerate(outcomes)]
    records.append(_record(4, *outcomes[2], cached=True))
    records += [
        records[1].model_copy(update={"i": 5 + place, "part": part})
        for place, part in enumerate(("raced", "held_back"))
    ]
    (tmp_path / "journal.jsonl").write_text("".join(f"{record.model_dump_json()}\n" for record in records))
    write_json(tmp_path / "pareto.json", pareto_document(records[:5]))
    monkeypatch.setattr("shearling.demo.shears.outcome.read_best", lambda search: "a-1")
    candidates = read_candidates(tmp_path)
    found = {item.id: (item.pareto, item.best) for item in candidates}
    assert len(candidates) == 4
    assert found == {"a-0": (False, False), "a-1": (True, True), "a-2": (True, False), "a-3": (False, False)}


def test_losses_stop_where_the_training_told_none(tmp_path):
    lines = [{"step": 1, "loss": 3.5, "epoch": 0.1}, {"step": 2, "loss": 3.0}, {"step": 2, "train_runtime": 9.0}]
    (tmp_path / "training_log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert read_losses(tmp_path) == ((1, 3.5), (2, 3.0))
    (tmp_path / "training_log.jsonl").write_text('{"loss": 1.0}\n')
    with pytest.raises(DocumentInvalid, match=r"training_log\.jsonl, line 1"):
        read_losses(tmp_path)
