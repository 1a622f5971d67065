"""Layers that choose their zeros and their formats: weights, masks, documents."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from shearling.artefact import open_artefact
from shearling.elastic.elastic_lora import ElasticLoraLinear
from shearling.elastic.mask import MASK_FILE, load_masks
from shearling.elastic.mixture import open_mixture, percents_of_ratios
from shearling.elastic.search_space import RankTemplate
from shearling.elastic.subnet import describe_subnet, open_subnet, read_subnet
from shearling.elastic.super_network import load_super_network
from shearling.elastic.variants import variant_directory
from shearling.elastic.weight_grid import NearestGrid
from shearling.errors import ArtefactMismatch, ArtefactMissing, DocumentInvalid, UsageError
from shearling.model.weight_shards import StoredWeights
from shearling.run import Run, open_frozen
from shearling.strict_json import write_document
from tests.support.json_files import edit_json
from tests.support.mixed_runs import mixed_network, mixed_run, one_of_each, open_mixed
from tests.support.super_networks import logits
from train.super_adapter.tune import tune_subnet

WIDTHS = {"feed_forward": [100, 75, 50], "attention": [60, 30], "reorder": "wanda"}


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return mixed_run(tmp_path_factory.mktemp("masked"))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return mixed_run(tmp_path_factory.mktemp("wide"), width=WIDTHS)


@pytest.fixture
def run(masked: Run, tmp_path: Path) -> Run:
    return Run(shutil.copytree(masked.path, tmp_path / "run"))


def test_a_layer_that_was_trained_dense_gets_its_weight_back(tmp_path: Path) -> None:
    run = mixed_run(tmp_path, sparsity={"ratio": 0.0})
    opened = open_mixed(run, formats=())
    network = mixed_network(opened)
    counted = []
    for choice in (opened.space.maximal(), opened.space.minimal(), opened.space.maximal()):
        network.activate(choice)
        counted.append({path: int((layer.merged_weight() == 0).sum()) for path, layer in network.layers.items()})
    assert counted[0] == counted[2] != counted[1]
    assert not any(counted[0].values())
    for path in network.layers:
        assert network.mask_at(path, 0).all()
        assert (network.weight_at(path, 60) == 0).float().mean() == pytest.approx(0.6, abs=0.05)


def document(run: Run, *, formats: tuple[str, ...] = ("int8", "int4")) -> Path:
    opened = open_mixed(run, formats=formats)
    subnet = describe_subnet(
        opened.adapter,
        one_of_each(opened),
        subnet_id="mixed-0",
        location=run.path,
        metrics=None,
        provenance=None,
        mixture=opened.mixture,
    )
    write_document(run.path / "best.json", subnet)
    return run.path / "best.json"


@pytest.mark.parametrize("lean", [False, True])
def test_each_layer_has_the_weight_the_mask_and_the_rounding_that_it_chose(masked, lean):
    opened = open_mixed(masked)
    network, choice = mixed_network(opened, lean=lean), one_of_each(opened)
    network.activate(choice)
    percents, bits, ranks = (getattr(opened.space, name)(choice) for name in ("percents", "bits", "ranks"))
    assert set(percents.values()) == {50, 60, 75} - ({50, 60, 75} - set(percents.values()))
    assert len(set(percents.values())) > 1
    for path, percent in percents.items():
        directory = masked.sparse if percent == 50 else variant_directory(masked.variants, percent)
        weight = StoredWeights(directory).read(f"{path}.weight").float()
        mask, layer = load_masks(directory / MASK_FILE)[path], network.elastic(path)
        if isinstance(layer, ElasticLoraLinear):
            rank = ranks[path]
            update = layer.lora_b.detach()[:, :rank].contiguous() @ layer.lora_a.detach()[:rank].contiguous()
            weight = (update * layer.scaling) * mask + weight
            found = layer.merged_weight()
        else:
            found = layer.active_weight()
        assert found.float().equal(NearestGrid(bits[path]).snap(weight)), path
        assert not found[~mask].any(), "what was pruned is back"
        assert found[mask].any()


def test_a_held_candidate_computes_what_an_unheld_one_does(masked):
    opened = open_mixed(masked)
    network = mixed_network(opened)
    network.activate(one_of_each(opened))
    apart = logits(network.model)
    with network.materialised():
        assert logits(network.model).equal(apart)


@pytest.mark.parametrize("kind", ["masked", "wide"])
def test_the_zeros_of_the_training_are_the_super_network_itself(kind, request):
    run = request.getfixturevalue(kind)
    opened, plain = open_mixed(run, formats=()), load_super_network(run)
    network = mixed_network(opened)
    for landmark in ("maximal", "heuristic", "minimal"):
        choice = getattr(plain.space, landmark)()
        trained = {group.id: group.values[0] for group in opened.space.mixed_groups}
        # Away from it and back: what is read from files stands in the order that channels were brought into.
        network.activate(opened.space.minimal())
        network.activate({**choice, **trained})
        plain.activate(choice)
        assert logits(network.model).equal(logits(plain.model))
        assert not logits(network.model).equal(torch.zeros(()))


def test_masks_of_a_choice_are_nested_in_reordered_networks_too(wide):
    opened = open_mixed(wide, formats=())
    network = mixed_network(opened)
    most, least = (network.masks_of(choice) for choice in (opened.space.minimal(), opened.space.maximal()))
    network.activate(opened.space.minimal())
    for path in most:
        assert not (most[path] & ~least[path]).any()
        assert int(most[path].sum()) < int(least[path].sum())
        assert not network.elastic(path).weight[~most[path]].any()


@pytest.mark.parametrize("bits", [4, 8])
def test_the_nearest_grid_keeps_zeros_and_rounds_no_worse_than_the_plainest(bits):
    weight = torch.randn(8, 128) * torch.rand(8, 128).gt(0.5)
    rounded = NearestGrid(bits).round(weight)
    assert rounded.scales.half().float().equal(rounded.scales)
    assert rounded.weight[weight == 0].eq(0).all()
    grouped = weight.reshape(-1, 64 if bits == 4 else 128)
    step = grouped.abs().amax(dim=1, keepdim=True) / (7 if bits == 4 else 127)
    plain = ((grouped / step).round() * step).reshape(weight.shape)
    assert (rounded.weight - weight).square().sum() <= (plain - weight).square().sum() * 1.02
    assert NearestGrid(bits).snap(weight).equal(rounded.weight)


def test_a_layer_that_no_group_divides_has_eight_bits():
    rounded = NearestGrid(4).round(torch.randn(4, 30))
    assert (rounded.bits, rounded.group_size) == (8, 30)


def test_a_document_of_the_second_version_is_read_as_it_was_written(run):
    opened, path = open_mixed(run), document(run)
    found = open_subnet(path)
    assert json.loads(path.read_text())["schema"] == "shearling.subnet/2"
    assert found.subnet.choice == one_of_each(opened)
    assert found.space == opened.space
    assert found.variants is not None
    assert found.variants.sha256 == opened.mixture.variants.sha256
    chosen = [(layer.sparsity, layer.weight_format) for layer in found.subnet.mixture.layers]
    names = {8: "int8", 4: "int4"}
    assert chosen == [
        (found.subnet.choice[f"layers.{layer}.sparsity"] / 100, names[found.subnet.choice[f"layers.{layer}.format"]])
        for layer in range(2)
    ]
    assert read_subnet(path) == found.subnet


def test_without_a_mixture_a_document_stays_of_the_first_version(run):
    adapter = open_artefact(run.super_adapter, kind="super_adapter")
    choice = load_super_network(run).space.maximal()
    subnet = describe_subnet(adapter, choice, subnet_id="a", location=run.path, metrics=None, provenance=None)
    write_document(run.path / "best.json", subnet)
    written = json.loads((run.path / "best.json").read_text())
    assert written["schema"] == "shearling.subnet/1"
    assert "mixture" not in written
    assert open_subnet(run.path / "best.json").mixture is None


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda data: data | {"schema": "shearling.subnet/1"}, "schema shearling.subnet/1 and has a mixture"),
        (lambda data: data | {"schema": "shearling.subnet/3"}, "subnet/3"),
        (lambda data: {name: value for name, value in data.items() if name != "mixture"}, "has no mixture"),
        (lambda data: data | {"mixture": data["mixture"] | {"ratios": [0.6]}}, "not allowed|sparsity"),
        (lambda data: data | {"mixture": data["mixture"] | {"ratios": [0.9]}}, "no layer was pruned to 0.9"),
        (lambda data: data | {"mixture": data["mixture"] | {"variants": None}}, "contradict each other"),
        (lambda data: data | {"choice": data["choice"] | {"layers.0.sparsity": 55}}, "55 is not allowed"),
        (
            lambda data: data | {"choice": data["choice"] | {"layers.0.format": 8, "layers.1.format": 8}},
            "mixture.layers",
        ),
    ],
)
def test_contradictions_are_refused(run, edit, problem):
    path = document(run)
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))
    with pytest.raises(DocumentInvalid, match=problem):
        open_subnet(path)


def test_other_variants_are_refused(run):
    path = document(run)
    reference = json.loads(path.read_text())["mixture"]
    reference["variants"]["manifest_sha256"] = "0" * 64
    edit_json(path, mixture=reference)
    with pytest.raises(ArtefactMismatch, match="manifest of the variants differs"):
        open_subnet(path)


def test_what_trains_further_needs_the_first_version(run):
    with pytest.raises(UsageError, match="its layers have zeros and formats of their own"):
        tune_subnet(open_subnet(document(run)), steps=1, learning_rate=1e-3)


def test_ratios_and_formats_that_a_run_cannot_have_are_refused(run, tmp_path):
    frozen, space = open_frozen(open_artefact(run.super_adapter, kind="super_adapter")), load_super_network(run).space
    with pytest.raises(UsageError, match="whole percent"):
        percents_of_ratios([0.655])
    with pytest.raises(UsageError, match=r"no layer was pruned to 0\.9"):
        open_mixture(space, frozen, percents=(90,), formats=())
    taken = RankTemplate(name="sparsity", modules=("mlp.gate_proj",), values=(6, 4))
    with pytest.raises(UsageError, match="group of the recipe is named 'sparsity'"):
        open_mixture(
            space.model_copy(update={"templates": (*space.templates, taken)}), frozen, percents=(60,), formats=()
        )
    beside = space.adapter.model_copy(update={"masked_training": False})
    with pytest.raises(UsageError, match="cannot be exported in integers"):
        open_mixture(space.model_copy(update={"adapter": beside}), frozen, percents=(), formats=("int4",))
    shutil.rmtree(run.variants)
    with pytest.raises(ArtefactMissing, match="this run has none") as missing:
        open_mixture(space, frozen, percents=(60,), formats=())
    assert "python -m train variants" in str(missing.value.remedy)


def test_a_dense_model_has_formats_alone(tmp_path):
    run = mixed_run(tmp_path, sparse=False, masked=False)
    with pytest.raises(UsageError, match="this model is dense"):
        open_mixed(run)
    opened = open_mixed(run, ratios=())
    network, choice = mixed_network(opened), one_of_each(opened)
    network.activate(choice)
    before = logits(network.model)
    with network.materialised():
        assert logits(network.model).equal(before)
    assert dict(network.integers()).keys() == opened.space.bits(choice).keys()
