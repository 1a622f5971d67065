"""The sparse artefact: exact zeros on disk, an honest report, nothing revived by a dtype."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

from shearling.artefact import open_artefact
from shearling.elastic.mask import MASK_FILE, check_masked_zeros, load_masks
from shearling.errors import ArtefactMismatch, ResourceExhausted
from shearling.model.checkpoint import hash_weights, load_model
from shearling.model.layers import find_layers
from shearling.model.weight_shards import StoredWeights
from shearling.recipe.sparsity import ReconstructionSection, SparsitySection
from shearling.strict_json import read_document
from tests.support.tiny_models import VOCABULARY, save_tiny
from train.base.artefact import import_base
from train.sparsity.artefact import SPARSITY_FILE, SparsityReport, sparsity_inputs, write_sparse


def calibration() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(3, VOCABULARY, (20,), generator=generator) for _ in range(5)]


def make(tmp_path, family="llama_tied_gqa", dtype="float32", **section):
    base = import_base(save_tiny(family, tmp_path / "source"), tmp_path / "base", model_id="tiny/model", dtype=dtype)
    return base, write_sparse(
        base, tmp_path / "sparse", section=SparsitySection(**section), calibration=calibration(), seed=7
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_zeros_survive_the_disk(dtype, tmp_path):
    base, sparse = make(tmp_path, dtype=dtype, ratio=0.6)
    masks = load_masks(sparse.path / MASK_FILE)
    before, after = (find_layers(load_model(artefact.path, dtype=dtype)).linears() for artefact in (base, sparse))
    for path, mask in masks.items():
        assert torch.equal(after[path].weight, before[path].weight * mask)
        assert torch.equal(after[path].weight[mask], before[path].weight[mask])
    assert sparse.manifest.parents == {"base": base.sha256}


@pytest.mark.parametrize("family", ["bloom", "mistral"])
def test_report_counts_what_is_there(family, tmp_path):
    base, sparse = make(tmp_path, family=family, ratio=0.4)
    report = read_document(sparse.path / SPARSITY_FILE, SparsityReport, schema="shearling.sparsity/1")
    model = load_model(sparse.path)
    linears = find_layers(model).linears()
    zeros = {path: int((linear.weight == 0).sum()) for path, linear in linears.items()}
    assert {path: module.pruned + module.kept_zeros for path, module in report.modules.items()} == zeros
    assert report.zeros == sum(linear.out_features * int(linear.in_features * 0.4) for linear in linears.values())
    assert report.achieved_scope == report.zeros / sum(linear.weight.numel() for linear in linears.values())
    assert report.achieved_model == report.zeros / base.manifest.details["parameters"]
    for share, layer in zip(report.layers, find_layers(model).layers, strict=True):
        mine = [linear.weight for linear in layer.modules() if linear in linears.values()]
        assert share == sum(int((weight == 0).sum()) for weight in mine) / sum(weight.numel() for weight in mine)


def test_details_are_what_a_subnet_needs(tmp_path):
    _, sparse = make(tmp_path, pattern="2:4")
    details = open_artefact(sparse.path, kind="sparse").manifest.details
    assert details["model_id"] == "tiny/model"
    assert details["sparsity"]["pattern"] == "2:4"
    assert details["sparsity"]["achieved_scope"] == 0.5
    assert details["sparsity"]["scope"][0] == "self_attn.q_proj"
    assert details["sparsity"]["calibration"] == {"dataset": "task/train", "samples": 128, "seq_len": 512, "seed": 7}
    assert set(details["sparsity"]) == {
        "method",
        "target",
        "pattern",
        "scope",
        "achieved_scope",
        "achieved_model",
        "zeros",
        "calibration",
    }


def test_same_seed_same_weights_and_magnitude_needs_no_text(tmp_path):
    base = import_base(save_tiny("mistral", tmp_path / "source"), tmp_path / "base", model_id="x")
    texts = calibration()
    one, two = (
        write_sparse(base, tmp_path / name, section=SparsitySection(), calibration=texts, seed=0)
        for name in ("one", "two")
    )
    assert one.manifest.files == two.manifest.files
    magnitude = write_sparse(
        base, tmp_path / "magnitude", section=SparsitySection(method="magnitude"), calibration=[], seed=0
    )
    assert magnitude.manifest.details["sparsity"]["calibration"] is None


def test_the_seed_orders_the_tuning_of_layers(tmp_path):
    base, texts = import_base(save_tiny("mistral", tmp_path / "source"), tmp_path / "base", model_id="x"), calibration()
    section = SparsitySection(reconstruction=ReconstructionSection(layer_epochs=1))
    hashes = {
        hash_weights(write_sparse(base, tmp_path / f"{seed}", section=section, calibration=texts * 2, seed=seed).path)
        for seed in (0, 1)
    }
    assert len(hashes) == 2


def test_a_layer_that_tuning_makes_worse_is_left_as_it_was(tmp_path):
    """A few steps of Adam lead away from weights that are nearly right."""
    base, texts = import_base(save_tiny("mistral", tmp_path / "source"), tmp_path / "base", model_id="x"), calibration()
    pruned = {"method": "alps", "ratio": 0.1, "reconstruction": ReconstructionSection(matrix_steps=15)}
    wild = ReconstructionSection(matrix_steps=15, layer_epochs=1, learning_rate=0.5)
    files = []
    for name, section in (("plain", pruned), ("tuned", {**pruned, "reconstruction": wild})):
        made = write_sparse(base, tmp_path / name, section=SparsitySection(**section), calibration=texts, seed=0)
        files.append(hash_weights(made.path))
    assert files[0] == files[1]
    report = read_document(tmp_path / "tuned" / SPARSITY_FILE, SparsityReport)
    assert report.errors is not None
    assert all(layer.tuned == layer.pruned for layer in report.errors)


def test_a_text_counts_as_an_input_where_it_is_read(tmp_path):
    (tmp_path / "text").write_text("some text")
    for method, digests in (("wanda", 1), ("magnitude", 0)):
        section = SparsitySection(method=method)
        inputs = sparsity_inputs(section, seed=0, texts=[tmp_path / "text", tmp_path / "absent"])
        assert (inputs["calibration_text"] is not None) == digests


def test_a_revived_weight_is_noticed(tmp_path):
    _, sparse = make(tmp_path)
    model, masks = load_model(sparse.path), load_masks(sparse.path / MASK_FILE)
    check_masked_zeros(model, masks)
    path = "model.layers.1.mlp.down_proj"
    row, column = (~masks[path]).nonzero()[0].tolist()
    with torch.no_grad():
        model.get_submodule(path).weight[row, column] = 1e-30
    with pytest.raises(ArtefactMismatch, match="1 pruned entries are nonzero") as caught:
        check_masked_zeros(model, masks)
    assert caught.value.where == path


REPAIRS = ReconstructionSection(swaps=4, matrix_steps=4, layer_epochs=1)


@pytest.mark.parametrize(
    "section",
    [
        {},
        {"method": "magnitude"},
        {"method": "sparsegpt", "reconstruction": REPAIRS},
        {"method": "alps"},
        {"allocation": "owl", "ratio": 0.6},
    ],
)
@pytest.mark.parametrize("family", ["llama_tied_gqa", "gemma3", "bloom"])
def test_layer_by_layer_from_disk_is_the_whole_model_in_memory_bit_for_bit(family, section, tmp_path, monkeypatch):
    _, by_layers = make(tmp_path / "layers", family=family, **section)
    monkeypatch.setattr(SparsitySection, "by_layers", False)
    _, whole = make(tmp_path / "whole", family=family, **section)
    files = dict(by_layers.manifest.files)
    assert {"model.safetensors", MASK_FILE, SPARSITY_FILE, "config.json"} <= files.keys()
    assert files == dict(whole.manifest.files)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_source_keeps_its_type_and_is_scored_in_float32(dtype, tmp_path):
    source = save_tiny("llama", tmp_path / "source")
    import_base(source, tmp_path / "half", model_id="x", dtype=dtype)
    for name in ("model.safetensors", "config.json"):
        (source / name).write_bytes((tmp_path / "half" / name).read_bytes())
    base = import_base(source, tmp_path / "base", model_id="x")
    wide = import_base(source, tmp_path / "wide", model_id="x", dtype="float32")
    assert base.manifest.details["torch_dtype"] == dtype
    section, text = SparsitySection(), calibration()
    kept, widened = (
        write_sparse(artefact, tmp_path / name, section=section, calibration=text, seed=0)
        for name, artefact in (("kept", base), ("widened", wide))
    )
    assert {tensor.dtype for tensor in StoredWeights(kept.path).tensors.values()} == {dtype}
    assert hash_weights(load_model(kept.path)) == hash_weights(widened.path)
    assert kept.manifest.files[MASK_FILE] == widened.manifest.files[MASK_FILE]


def again(tmp_path, base):
    """The base or its sparse artefact once more."""
    if base is None:
        return import_base(tmp_path / "source", tmp_path / "again", model_id="x")
    return write_sparse(base, tmp_path / "again", section=SparsitySection(), calibration=calibration(), seed=0)


@pytest.mark.parametrize("pruned", [False, True])
def test_a_full_disk_is_an_environment_fault_and_leaves_nothing(pruned, tmp_path, monkeypatch):
    base, _ = make(tmp_path)

    def full(*_arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ResourceExhausted, match="bytes free") as caught:
        again(tmp_path, base if pruned else None)
    assert caught.value.exit_code == 4
    assert [path.name for path in tmp_path.iterdir() if "again" in path.name] == []


def test_pruning_that_was_killed_between_two_shards_starts_over(tmp_path):
    base, expected = make(tmp_path)
    script = f"""
        import os, signal, torch
        from pathlib import Path
        import train.sparsity.artefact as artefact
        from shearling.artefact import open_artefact
        from shearling.recipe.sparsity import SparsitySection
        from train.sparsity.pruned_layers import PrunedLayers

        done = PrunedLayers.done

        def killed(self, index, masks):
            done(self, index, masks)
            if index == 1:
                os.kill(os.getpid(), signal.SIGKILL)

        PrunedLayers.done = killed
        base = open_artefact(Path({str(base.path)!r}), kind="base")
        artefact.write_sparse(
            base, Path({str(tmp_path / "killed")!r}), section=SparsitySection(), calibration=[torch.arange(9)], seed=7
        )
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()
    repeated = write_sparse(base, tmp_path / "killed", section=SparsitySection(), calibration=calibration(), seed=7)
    assert repeated.manifest.files == expected.manifest.files
