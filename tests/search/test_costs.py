"""What candidates cost, against exported files and brute force, and limits that are checked first."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from export.quantization.settings import Quantization
from export.request import ExportRequest
from export.stage import export_subnet
from search.cost_words import COSTS
from search.costing import CostCounter
from search.front import BestRule
from search.journal import read_journal
from search.latency.table import LatencyTable
from search.layer_forms import LayerForms, linked_groups
from search.objective import SubnetObjective
from search.settings import SearchSettings, settle
from search.stage import search
from search.stored_bytes import StoredForm
from shearling.elastic.merge_rule import keeps_ranks_apart
from shearling.elastic.size import measure_network
from shearling.elastic.subnet import open_subnet
from shearling.elastic.super_network import SuperNetwork, load_super_network
from shearling.errors import ArtefactMismatch, ArtefactMissing, NoCandidate, UsageError
from shearling.executors.executor import Workforce
from shearling.run import Run
from tests.support.latency_tables import CONSTANT_MS, invent_table, invented_document, invented_ms
from tests.support.small_searches import SMALL_SEARCH
from tests.support.tiny_subnets import run_with_best

WIDTHS = {"feed_forward": [100, 75, 50], "attention": [60, 30]}
KINDS = {
    "masked": {"width": WIDTHS},
    "beside": {"masked": False},
    "grid": {"masked": False, "sparse": False, "quantization": {"bits": 8}},
    "dense": {"masked": False, "sparse": False, "width": {"feed_forward": [100, 75, 50]}},
}
APART = ("beside", "grid")
SETTINGS = dataclasses.replace(SMALL_SEARCH, cost="latency")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    return {name: run_with_best(tmp_path_factory.mktemp(name), **options) for name, options in KINDS.items()}


@pytest.fixture
def run(runs: dict[str, Run], tmp_path: Path) -> Run:
    return Run(shutil.copytree(runs["masked"].path, tmp_path / "run"))


def counter(network: SuperNetwork, *, weight_format: str = "fp32", sparse_kernel: bool = False) -> CostCounter:
    # int4 that has seen no text has groups of 128.
    return CostCounter(network, tokens=16, stored=StoredForm(weight_format, sparse_kernel, group_size=128))


STOCK = ("fp32", "fp16", "bf16", "int8", "int4")
FORMS = [
    *(("masked", name, False) for name in STOCK),
    *(("masked", name, True) for name in ("bf16", "int8", "int4")),
    *(("beside", name, packed) for name, packed in (("int8", False), ("int8", True), ("bf16", True))),
    ("grid", "int8", False),
    *(("dense", name, packed) for name, packed in (("fp32", False), ("int4", False), ("int8", True))),
]
FAST = {("masked", "fp32", False), ("masked", "int8", False), ("beside", "int8", True), ("dense", "int4", False)}
FAST |= {("grid", "int8", False)}


@pytest.mark.parametrize(
    ("kind", "weight_format", "packed"),
    [pytest.param(*form, marks=() if form in FAST else pytest.mark.slow) for form in FORMS],
)
def test_the_bytes_are_those_of_the_exported_file(
    runs: dict[str, Run], kind: str, weight_format: str, packed: bool, tmp_path: Path
) -> None:
    run = runs[kind]
    request = ExportRequest(
        output=tmp_path / "export",
        formats=("openvino",),
        weight_format=weight_format,
        sparse_kernels=("openvino",) if packed else (),
        quantization=Quantization(preset="fast") if weight_format == "int4" else Quantization(),
        verify="off",
    )
    exported = export_subnet(run.path / "best.json", request)
    network, opened = load_super_network(run), open_subnet(run.path / "best.json")
    indices = network.space.encode(opened.subnet.choice)
    counted = counter(network, weight_format=weight_format, sparse_kernel=packed).costs(indices).model_bytes
    stored = (exported.path / "openvino" / "openvino_model.bin").stat().st_size
    assert counted == pytest.approx(stored, rel=0.01)
    # The count is of this candidate, not of any: the largest takes more.
    assert (
        counter(network, weight_format=weight_format, sparse_kernel=packed).costs(tuple(0 for _ in indices)).model_bytes
        > 1.01 * counted
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_rest_is_what_brute_force_counts(runs: dict[str, Run], kind: str) -> None:
    network = load_super_network(runs[kind])
    space, count, size = network.space, counter(network), measure_network(network)
    apart = kind in APART
    for choice in (space.maximal(), space.heuristic(), space.minimal()):
        costs = count.costs(space.encode(choice))
        cuts, adapter = space.cuts(choice), network.adapter_params(choice)
        assert costs.adapter_params == adapter
        assert costs.parameters == size.parameters(cuts) + adapter * apart
        assert costs.macs_m == pytest.approx((size.macs(tokens=16, cuts=cuts) + 16 * adapter * apart) / 1e6)
        nonzero = adapter * apart
        adapters = {id(p) for layer in network.layers.values() for p in (layer.lora_a, layer.lora_b)}
        for name, parameter in network.model.named_parameters():
            if id(parameter) in adapters:
                continue
            path, _, what = name.rpartition(".")
            cut = cuts.get(path)
            kept = parameter
            if cut is not None:
                kept = (
                    parameter[: cut.out_features]
                    if what == "bias"
                    else parameter[: cut.out_features, : cut.in_features]
                )
            nonzero += int((kept != 0).sum())
        assert costs.nonzero_params == nonzero


@pytest.mark.parametrize("kind", KINDS)
def test_a_cost_is_the_sum_of_what_linked_groups_add(runs: dict[str, Run], kind: str) -> None:
    network = load_super_network(runs[kind])
    table = LatencyTable(invented_document(LayerForms(network).every()), sha256="", where=runs[kind].path)
    count = CostCounter(network, tokens=16, stored=StoredForm("int8"), latency=table)
    linked = linked_groups(network.space)
    assert sorted(place for places in linked for place in places) == list(range(len(network.space.groups)))
    assert len(linked) > 1
    random = torch.Generator().manual_seed(1)
    for _ in range(20):
        indices = tuple(int(torch.randint(len(g.values), (), generator=random)) for g in network.space.groups)
        costs = vars(count.costs(indices))
        for name, words in COSTS.items():
            expected = 0.0 if words.field is None else costs[words.field]
            assert count.count(indices, name) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_every_choice_has_a_form_that_the_space_lists(runs: dict[str, Run], kind: str) -> None:
    network = load_super_network(runs[kind])
    forms = LayerForms(network)
    every, random = set(forms.every()), torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(50):
        choice = {
            group.id: group.values[int(torch.randint(len(group.values), (), generator=random))]
            for group in network.space.groups
        }
        found = forms.of(choice)
        seen |= set(found.values())
        network.activate(choice)
        for path, form in found.items():
            layer = network.layers.get(path) or network.unadapted[path]
            assert (form.out_features, form.in_features) == (layer.active_out, layer.active_in)
            assert form.rank == (layer.rank if kind in APART else 0)
    assert seen == every


def expected_ms(network: SuperNetwork, indices: tuple[int, ...]) -> float:
    forms = LayerForms(network).of(network.space.decode(indices))
    return CONSTANT_MS + sum(invented_ms(form) for form in forms.values())


def test_a_latency_is_predicted_and_kept_below_a_limit_by_any_number_of_workers(run: Run) -> None:
    invent_table(run, run.latency)
    network = load_super_network(run)
    grid = network.space.encode(network.space.maximal()), network.space.encode(network.space.minimal())
    slowest, fastest = (expected_ms(network, indices) for indices in grid)
    limited = dataclasses.replace(SETTINGS, max_latency_ms=(slowest + fastest) / 2)
    found = search(run, limited, BestRule(), workforce=Workforce(threads=1))
    assert all(record.latency_ms == pytest.approx(expected_ms(network, record.choice_idx)) for record in found.records)
    assert {record.choice_idx for record in found.records if record.latency_ms > limited.max_latency_ms} == {grid[0]}
    assert found.best.latency_ms <= limited.max_latency_ms
    assert "predicted ms <=" in found.best_rule
    assert found.best_rule.startswith("max accuracy"), "the limit keeps the largest out"
    others = Run(
        shutil.copytree(run.path, run.path.with_name("others"), ignore=shutil.ignore_patterns("search", "search.html"))
    )
    search(others, limited, BestRule(), workforce=Workforce(executor="processes", workers=2))
    assert journal(others) == journal(run)


@pytest.mark.slow
def test_several_workers_find_the_same_latencies(run: Run) -> None:
    invent_table(run, run.latency)
    search(run, SETTINGS, BestRule(), workforce=Workforce(threads=1))
    others = Run(
        shutil.copytree(run.path, run.path.with_name("others"), ignore=shutil.ignore_patterns("search", "search.html"))
    )
    search(others, SETTINGS, BestRule(), workforce=Workforce(executor="processes", workers=2))
    assert journal(others) == journal(run)


def journal(run: Run) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (run.search / "journal.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in line.keys() - {"seconds"}} for line in lines]


def test_a_limit_that_nothing_keeps_is_refused_before_the_first_evaluation(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SubnetObjective, "measure", lambda *_: pytest.fail("something was measured"))
    invent_table(run, run.latency)
    limits = {
        "max_latency_ms": (CONSTANT_MS, r"has 0\.\d+ ms, more than 0\.25 ms"),
        "max_bytes": (1000, r"has 0\.\d+ MB, more than 0\.00 MB"),
        "max_cost_share": (0.001, "costs .* of the largest"),
    }
    for name, (most, words) in limits.items():
        with pytest.raises(NoCandidate, match=words) as caught:
            search(run, dataclasses.replace(SETTINGS, **{name: most}), BestRule())
        assert (caught.value.exit_code, caught.value.where) == (1, name)
    with pytest.raises(NoCandidate, match="adapter parameters, more than 1"):
        search(run, SETTINGS, BestRule(max_params=1))


def test_a_table_that_does_not_fit_is_refused_before_the_first_evaluation(
    run: Run, runs: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SubnetObjective, "measure", lambda *_: pytest.fail("something was measured"))
    with pytest.raises(ArtefactMissing, match=r"there is none here.*python -m search latency"):
        search(run, SETTINGS, BestRule())
    invent_table(run, tmp_path / "short", forget=2)
    invent_table(run, tmp_path / "int8", weight_format="int8")
    invent_table(run, tmp_path / "separate", separate=True)
    invent_table(runs["dense"], tmp_path / "other")
    refusals = {
        "short": (ArtefactMismatch, r"has no time for \[\d+, \d+\], nor for 1 other"),
        "separate": (ArtefactMismatch, "measured with ranks beside the weights"),
        "other": (ArtefactMismatch, "was measured for another sparse model"),
    }
    for name, (error, words) in refusals.items():
        with pytest.raises(error, match=words):
            search(run, dataclasses.replace(SETTINGS, latency_table=str(tmp_path / name)), BestRule())
    with pytest.raises(UsageError, match="the latency table is of int8, bytes are to be those of bf16"):
        search(
            run,
            dataclasses.replace(SETTINGS, latency_table=str(tmp_path / "int8"), weight_format="bf16"),
            BestRule(),
        )


def test_bytes_are_those_of_the_table_that_is_named_or_the_runs_own(run: Run, tmp_path: Path) -> None:
    network = load_super_network(run)

    def check(counted: str, *, predicted: bool, **changes: object) -> None:
        settings = dataclasses.replace(SMALL_SEARCH, algorithm="heuristic", **{"cost": "none", **changes})
        best = search(run, settings, BestRule(), force=True).best
        assert best.model_bytes == counter(network, weight_format=counted).costs(best.choice_idx).model_bytes
        assert (best.latency_ms is not None) == predicted

    with pytest.raises(ArtefactMissing, match=r"absent: this is to be the latency table, and there is none"):
        check("fp32", predicted=False, latency_table=str(tmp_path / "absent"))
    invent_table(run, tmp_path / "bf16", weight_format="bf16")
    check("bf16", predicted=True, latency_table=str(tmp_path / "bf16"))
    check("fp32", predicted=False, max_bytes=2**30)
    invent_table(run, run.latency, weight_format="int8")
    check("int8", predicted=True, max_bytes=2**30)
    check("int8", predicted=True, cost="bytes")
    check("fp16", predicted=False, max_bytes=2**30, weight_format="fp16")
    check("fp32", predicted=False)


def test_bytes_that_nobody_knows_are_not_guessed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number format of another package stores what it likes."""
    monkeypatch.setattr(SubnetObjective, "measure", lambda *_: pytest.fail("something was measured"))
    settings = dataclasses.replace(SETTINGS, cost="bytes", weight_format="coarse")
    with pytest.raises(UsageError, match="the bytes of coarse are not known here"):
        search(run, settings, BestRule())


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_follows_from_what_differs(runs: dict[str, Run], kind: str) -> None:
    network = load_super_network(runs[kind])
    default = open_subnet(runs[kind].path / "best.json").subnet.merge.default
    assert keeps_ranks_apart(network.space, sparse=network.masks is not None) == (default == "separate")
    auto = dataclasses.replace(SMALL_SEARCH, cost="auto")
    settled = settle(auto, BestRule(accuracy_delta=0.1), network.space, sparse=network.masks is not None)
    assert settled.cost == "macs"


def test_ranks_that_are_merged_are_searched_by_accuracy_alone(tmp_path: Path) -> None:
    run = run_with_best(tmp_path)
    auto: SearchSettings = dataclasses.replace(SMALL_SEARCH, cost="auto")
    for rule, name in ((BestRule(accuracy_delta=0.1), "accuracy_delta"), (BestRule(prefer="cheaper"), "prefer")):
        with pytest.raises(UsageError, match="ranks that are merged cost nothing at inference") as caught:
            search(run, auto, rule)
        assert caught.value.where == name
    found = search(run, auto, BestRule())
    assert {record.cost_kind for record in found.records} == {"none"}
    assert "fewer" not in found.best_rule
    assert json.loads((run.search / "pareto.json").read_text())["objectives"] == {"accuracy": "max"}
    points = json.loads((run.search / "pareto.json").read_text())["points"]
    most = max(record.accuracy for record in found.explored)
    assert {point["accuracy"] for point in points} == {most}
    assert read_journal(run.search / "journal.jsonl") == found.records
    assert {record.latency_ms for record in found.records} == {None}
    # The same rows answer another search, by what the adapter weighs.
    cheap = search(run, dataclasses.replace(auto, cost="adapter_params"), BestRule(prefer="cheaper"), force=True)
    assert cheap.best.adapter_params <= found.best.adapter_params
