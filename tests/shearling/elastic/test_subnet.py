"""`best.json`: what is written opens again, and everything else is refused with exit code 3 (algorithms 6.2, fault
table)."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from shearling.artefact import open_artefact, sha256_file
from shearling.elastic.grid_file import GRID_FILE
from shearling.elastic.mask import MASK_FILE
from shearling.elastic.reordering import REORDERING_FILE
from shearling.elastic.search_space import read_search_space
from shearling.elastic.subnet import Metrics, Provenance, describe_subnet, open_subnet
from shearling.elastic.super_network import ADAPTER_FILE
from shearling.errors import ArtefactCorrupt, ArtefactError, ArtefactMismatch, ArtefactMissing, DocumentInvalid
from shearling.model.checkpoint import hash_weights, load_model
from shearling.run import Run
from shearling.strict_json import write_document
from tests.support.tiny_runs import RANKS, tiny_recipe
from train.stage import run_recipe

METRICS = Metrics(
    task="headlines", n=17, accuracy=0.5, accuracy_stderr=None, adapter_params=1, nonzero_params=2, seconds=0.1
)
PROVENANCE = Provenance(
    algorithm="heuristic", seed=0, evaluations=1, results_file="journal.jsonl", row=0, best_rule="max accuracy"
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, and beside it one that differs only in its seed."""
    directory = tmp_path_factory.mktemp("subnet")
    for seed in (3, 4):
        # Calibrated pruning, so that the mask depends on the seed too.
        sparsity = {"method": "wanda", "ratio": 0.5}
        run_recipe(
            tiny_recipe(directory / str(seed), seed=seed, sparsity=sparsity, train={"steps": 1}),
            directory / f"run-{seed}",
        )
    run_recipe(
        tiny_recipe(directory / "dense", sparse=False, masked=False, scaling="rank", train={"steps": 1}),
        directory / "run-dense",
    )
    return directory


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Run:
    """A copy of the run with a `best.json` in `search/`, free to be damaged."""
    shutil.copytree(trained / "run-3", tmp_path / "run")
    return with_best(Run(tmp_path / "run"))


def with_best(run: Run) -> Run:
    adapter = open_artefact(run.super_adapter, kind="super_adapter")
    choice = read_search_space(run.super_adapter / "search_space.json").heuristic()
    run.search.mkdir()
    subnet = describe_subnet(
        adapter, choice, subnet_id="heuristic-0000", location=run.search, metrics=METRICS, provenance=PROVENANCE
    )
    write_document(run.search / "best.json", subnet)
    return run


def with_best_of(trained: Path, tmp_path: Path) -> Run:
    """The pruned run, copied beside."""
    shutil.copytree(trained / "run-3", tmp_path / "pruned")
    return with_best(Run(tmp_path / "pruned"))


def best(run: Run) -> Path:
    return run.search / "best.json"


def edit(run: Run, **changes: object) -> None:
    """Set fields by dotted path, `__` for the dot; a value that is a function gets the old value."""
    data = json.loads(best(run).read_text())
    for dotted, value in changes.items():
        *parents, last = dotted.split("__")
        section = data
        for parent in parents:
            section = section[parent]
        section[last] = value(section.get(last)) if callable(value) else value
    best(run).write_text(json.dumps(data))


def refusal(run: Run) -> ArtefactError:
    started_s = time.monotonic()
    with pytest.raises(ArtefactError) as caught:
        open_subnet(best(run))
    assert caught.value.exit_code == 3
    assert time.monotonic() - started_s < 5
    return caught.value


def test_round_trip(run):
    opened = open_subnet(best(run))
    assert opened.subnet.ranks == opened.space.ranks(opened.subnet.choice)
    assert opened.subnet.choice == opened.space.heuristic()
    assert (opened.frozen.manifest.kind, opened.adapter.manifest.kind) == ("sparse", "super_adapter")
    assert opened.subnet.base.weights_sha256 == hash_weights(load_model(run.sparse))
    assert opened.subnet.base.path == "../sparse"
    assert opened.subnet.adapter.file == f"../super_adapter/{ADAPTER_FILE}"
    assert opened.subnet.sparsity.mask.file == f"../sparse/{MASK_FILE}"
    assert opened.subnet.adapter.scaling == 2.0
    assert opened.subnet.adapter.scaling_rule == "alpha/r_max"
    assert opened.subnet.merge.default == "masked"
    assert (opened.subnet.metrics, opened.subnet.provenance) == (METRICS, PROVENANCE)


def test_a_document_from_before_rows_were_held_back_still_opens(run):
    data = json.loads(best(run).read_text())
    newer = {"loss", "versus_largest", "held_back"}
    assert newer <= data["metrics"].keys()
    data["metrics"] = {key: value for key, value in data["metrics"].items() if key not in newer}
    best(run).write_text(json.dumps(data))
    assert open_subnet(best(run)).subnet.metrics == METRICS


def test_a_run_can_be_moved_and_opened_from_anywhere(run, tmp_path, monkeypatch):
    shutil.move(run.path, tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "elsewhere" / "search")
    assert open_subnet(Path("best.json")).subnet.id == "heuristic-0000"
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "elsewhere" / "search" / "best.json")
    assert open_subnet(link).subnet.id == "heuristic-0000"


def test_dense_base_has_no_sparsity(trained, tmp_path):
    shutil.copytree(trained / "run-dense", tmp_path / "run")
    run = with_best(Run(tmp_path / "run"))
    opened = open_subnet(best(run))
    assert opened.subnet.sparsity is None
    assert opened.frozen.manifest.kind == "base"
    assert opened.subnet.merge.default == "dense"
    assert opened.subnet.adapter.scaling_rule == "alpha/rank"
    sparsity = json.loads(best(with_best_of(trained, tmp_path)).read_text())["sparsity"]
    edit(run, sparsity=sparsity)
    assert "sparsity is given for a base base" in str(refusal(run))


@pytest.mark.parametrize("value", [3, 0, -2, 8, 600])
def test_a_rank_outside_the_space_is_refused_and_the_list_shown(run, value):
    edit(run, choice=lambda old: {**old, "layers.1.up": value})
    error = refusal(run)
    assert "layers.1.up" in str(error)
    assert f"Allowed: {', '.join(map(str, RANKS))}" in str(error)
    assert str(best(run)) in str(error)


@pytest.mark.parametrize("value", [True, False, 4.0, 4.5, "4", None, [4]])
def test_a_rank_that_is_no_integer_is_refused(run, value):
    edit(run, choice=lambda old: {**old, "layers.1.up": value})
    assert "choice.layers.1.up" in str(refusal(run))
    edit(
        run,
        choice=lambda old: {**old, "layers.1.up": 4},
        ranks=lambda old: {**old, "model.layers.1.mlp.up_proj": value},
    )
    assert "ranks.model.layers.1.mlp.up_proj" in str(refusal(run))


def without(name: str):
    return lambda old: {key: value for key, value in old.items() if key != name}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"choice": without("layers.0.qkv")}, "layers.0.qkv"),
        ({"choice": lambda old: {**old, "layers.7.qkv": 6}}, "layers.7.qkv"),
        ({"ranks": without("model.layers.1.mlp.down_proj")}, "model.layers.1.mlp.down_proj"),
        ({"ranks": lambda old: {**old, "model.layers.1.mlp.gate_proj": 6}}, "model.layers.1.mlp.gate_proj"),
        ({"ranks": lambda old: {**old, "model.layers.0.mlp.up_proj": 2}}, "the choice gives 4"),
        ({"ranks": lambda old: {**old, "model.layers.0.mlp.up_proj": 64}}, "model.layers.0.mlp.up_proj"),
        ({"adapter__scaling": 1.0}, "adapter.scaling"),
        ({"adapter__alpha": 24.0}, "adapter.alpha"),
        ({"adapter__r_max": 8}, "adapter.r_max"),
        ({"adapter__masked_training": False}, "adapter.masked_training"),
        ({"adapter__target_modules": ["q_proj"]}, "adapter.target_modules"),
        ({"adapter__use_rslora": True}, "adapter.use_rslora"),
        ({"adapter__use_dora": True}, "adapter.use_dora"),
        ({"adapter__bias": "all"}, "adapter.bias"),
        ({"adapter__fan_in_fan_out": True}, "adapter.fan_in_fan_out"),
        ({"adapter__form": "sub"}, "adapter.form"),
        ({"adapter__scaling_rule": "alpha/sqrt(r)"}, "adapter.scaling_rule"),
        ({"merge__default": "dense"}, "merge"),
        ({"merge__allowed": ["masked", "dense"]}, "merge"),
        ({"mode": "width"}, "mode"),
        ({"widths": {"model.layers.0": 3}}, "widths"),
        ({"permutation": [0]}, "permutation"),
        ({"schema": "shearling.subnet/3"}, "newer than"),
        ({"schema": "shearling.manifest/1"}, "schema"),
        ({"schema": None}, "schema"),
        ({"surprise": 1}, "surprise"),
        ({"base__surprise": 1}, "base.surprise"),
        ({"base__model_type": "bloom"}, "base.model_type"),
        ({"base__num_layers": 3}, "base.num_layers"),
        ({"sparsity": None}, "sparsity is missing"),
        ({"metrics__split": "train"}, "metrics.split"),
    ],
)
def test_a_document_that_contradicts_itself_or_the_space_is_refused(run, changes, named):
    edit(run, **changes)
    error = refusal(run)
    assert isinstance(error, DocumentInvalid)
    assert named in str(error)
    assert str(best(run)) in str(error)


@pytest.mark.parametrize(
    ("field", "named"),
    [
        ("base__manifest_sha256", "manifest of the base"),
        ("base__config_sha256", "configuration of the base"),
        ("base__weights_sha256", "weights of the base"),
        ("adapter__sha256", "super-adapter"),
        ("search_space_sha256", "search space"),
        ("sparsity__mask__sha256", "mask"),
    ],
)
def test_every_digest_counts(run, field, named):
    edit(run, **{field: "0" * 64})
    error = refusal(run)
    assert isinstance(error, ArtefactMismatch)
    assert named in str(error)
    edit(run, **{field: "0" * 63})
    assert isinstance(refusal(run), DocumentInvalid)


@pytest.mark.parametrize(
    ("section", "file"),
    [("adapter", "../super_adapter/search_space.json"), ("sparsity__mask", "../other/mask.safetensors")],
)
def test_files_other_than_those_that_get_loaded_are_refused(run, section, file):
    (run.path / "other").mkdir()
    shutil.copy(run.sparse / MASK_FILE, run.path / "other")
    edit(run, **{f"{section}__file": file, f"{section}__sha256": sha256_file(run.search / file)})
    error = refusal(run)
    assert isinstance(error, DocumentInvalid)
    assert Path(file).name in str(error)


@pytest.mark.parametrize("kind", ["sparse", "super_adapter"])
def test_an_intact_artefact_of_another_run_with_the_same_shapes_is_refused(run, trained, kind):
    shutil.rmtree(run.path / kind)
    shutil.copytree(trained / "run-4" / kind, run.path / kind)
    error = refusal(run)
    assert isinstance(error, ArtefactMismatch)
    assert "sha256" in str(error)


def test_an_adapter_of_another_base_is_refused_though_every_file_is_the_one_named(run, trained):
    """The base of another run in place, and the document says so: the adapter alone knows better."""
    shutil.rmtree(run.sparse)
    shutil.copytree(trained / "run-4" / "sparse", run.sparse)
    edit(
        run,
        base__manifest_sha256=open_artefact(run.sparse, kind="sparse").sha256,
        base__weights_sha256=hash_weights(run.sparse),
        sparsity__mask__sha256=sha256_file(run.sparse / MASK_FILE),
    )
    error = refusal(run)
    assert isinstance(error, ArtefactMismatch)
    assert "base that the adapter was trained on" in str(error)


def test_a_grid_is_refused_where_the_adapter_has_none(run):
    (run.path / "other").mkdir()
    (run.path / "other" / GRID_FILE).write_bytes(b"of another run")
    for directory, kind in (("super_adapter", ArtefactMismatch), ("other", DocumentInvalid)):
        edit(run, grid={"file": f"../{directory}/{GRID_FILE}", "sha256": "0" * 64, "bits": 4})
        error = refusal(run)
        assert isinstance(error, kind)
        assert "grid" in str(error)


def test_an_order_of_channels_is_refused_where_the_adapter_has_none(run):
    edit(run, permutation={"file": f"../super_adapter/{REORDERING_FILE}", "sha256": "0" * 64, "method": "l1"})
    error = refusal(run)
    assert isinstance(error, DocumentInvalid)
    assert "permutation is given" in str(error)


@pytest.mark.parametrize(
    "name",
    [
        "sparse/model.safetensors",
        "sparse/mask.safetensors",
        "sparse/config.json",
        "super_adapter/adapter_model.safetensors",
    ],
)
def test_one_flipped_bit_is_found(run, name):
    file = run.path / name
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    error = refusal(run)
    assert isinstance(error, ArtefactCorrupt)
    assert Path(name).name in str(error)


@pytest.mark.parametrize("kind", ["sparse", "super_adapter"])
def test_missing_artefacts_are_named(run, kind):
    shutil.rmtree(run.path / kind)
    error = refusal(run)
    assert isinstance(error, ArtefactMissing)
    assert kind in str(error)


def test_a_document_that_was_moved_says_what_it_misses(run, tmp_path):
    (moved := tmp_path / "elsewhere" / "mybest.json").parent.mkdir()
    shutil.copy(best(run), moved)
    with pytest.raises(ArtefactMissing, match="by the way from itself") as caught:
        open_subnet(moved)
    assert "mybest.json" in caught.value.where
    assert "train" not in caught.value.remedy


@pytest.mark.parametrize("content", [b"", b"  \n", b"{", b"[]", b"null", b"\xff\xfe", b'{"schema": NaN}'])
def test_what_is_no_json_object_is_refused(run, content):
    best(run).write_bytes(content)
    assert isinstance(refusal(run), DocumentInvalid)


def test_truncation_anywhere_is_refused_with_a_position(run):
    text = best(run).read_text().rstrip()
    for length in range(1, len(text), 97):
        best(run).write_text(text[:length])
        assert "line" in str(refusal(run))


def test_duplicate_keys_are_refused(run):
    best(run).write_text(best(run).read_text().replace('"mode"', '"id": "other", "mode"', 1))
    assert "duplicate key 'id'" in str(refusal(run))


def test_a_missing_file_is_missing(run):
    best(run).unlink()
    assert isinstance(refusal(run), ArtefactMissing)


def test_a_choice_outside_the_space_cannot_be_described(run):
    adapter = open_artefact(run.super_adapter, kind="super_adapter")
    with pytest.raises(DocumentInvalid, match="Allowed"):
        describe_subnet(
            adapter,
            {**open_subnet(best(run)).subnet.choice, "layers.0.up": 5},
            subnet_id="x",
            location=run.search,
            metrics=None,
            provenance=None,
        )
