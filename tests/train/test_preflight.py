"""The preflight: what is bound to fail fails before anything is loaded or written."""

from __future__ import annotations

import shutil
import time
from collections import namedtuple

import psutil
import pytest

from benchmarks.gguf_writer import write_gguf
from shearling.errors import (
    ArtefactMissing,
    CheckpointUnsafe,
    ExportUnavailable,
    ModelUnsupported,
    RecipeInvalid,
    ResourceExhausted,
)
from shearling.recipe.model import ModelSection
from tests.support.json_files import edit_json
from tests.support.tiny_models import FAMILIES, save_tiny, tiny_tokenizer
from tests.support.tiny_runs import tiny_recipe
from train.preflight import check_structure, copies_in_memory, find_model, preflight
from train.stage import run_recipe


@pytest.mark.parametrize("family", ["llama", "llama_tied_gqa", "bloom"])
def test_a_directory_is_counted_without_loading_it(family, tmp_path):
    source = find_model(ModelSection(path=save_tiny(family, tmp_path / "m"), model_id="x"))
    model = FAMILIES[family]()
    assert (source.model_type, source.parameters) == (model.config.model_type, model.num_parameters())


def test_a_gguf_file_is_counted_without_loading_it(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", FAMILIES["llama_tied_gqa"](), tiny_tokenizer())
    source = find_model(ModelSection(path=path, model_id="x"))
    assert (source.model_type, source.parameters) == ("llama", FAMILIES["llama_tied_gqa"]().num_parameters())


@pytest.mark.parametrize("model_type", ["mamba3", "t5"])
def test_architectures_out_of_reach_are_refused_before_anything_is_made(model_type, tmp_path):
    recipe = tiny_recipe(tmp_path)
    edit_json(tmp_path / "source" / "config.json", model_type=model_type)
    started_s = time.monotonic()
    with pytest.raises(ExportUnavailable, match=model_type) as caught:
        run_recipe(recipe, tmp_path / "run")
    assert caught.value.exit_code == 4
    assert caught.value.remedy
    assert not (tmp_path / "run").exists()
    assert time.monotonic() - started_s < 120


def test_models_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(ArtefactMissing, match="neither a GGUF file nor"):
        find_model(ModelSection(path=tmp_path / "nowhere", model_id="x"))
    source = save_tiny("llama", tmp_path / "m")
    edit_json(source / "config.json", model_type=None)
    with pytest.raises(ModelUnsupported, match="model_type"):
        find_model(ModelSection(path=source, model_id="x"))
    shutil.rmtree(source)
    source = save_tiny("llama", tmp_path / "m")
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises((CheckpointUnsafe, ArtefactMissing)):
        find_model(ModelSection(path=source, model_id="x"))


def test_groups_that_do_not_fit_are_refused_before_pruning(tmp_path):
    recipe = tiny_recipe(tmp_path, family="bloom")
    save_tiny("llama", tmp_path / "other")
    with pytest.raises(RecipeInvalid, match=r"'query_key_value' fits no linear module.*self_attn\.q_proj"):
        check_structure(recipe, tmp_path / "other")
    check_structure(recipe, tmp_path / "source")
    source = recipe.model.model_copy(update={"path": tmp_path / "other"})
    with pytest.raises(RecipeInvalid):
        run_recipe(recipe.model_copy(update={"model": source}), tmp_path / "run")
    assert not (tmp_path / "run" / "sparse").exists()


def test_too_little_disk_or_memory_is_refused_with_the_figures(tmp_path, monkeypatch):
    recipe = tiny_recipe(tmp_path)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10, 5, 5))
    with pytest.raises(ResourceExhausted, match=r"bytes of disk needed, 5 free") as caught:
        preflight(recipe, tmp_path / "deep" / "run")
    assert caught.value.exit_code == 4
    monkeypatch.undo()
    memory = namedtuple("memory", "available")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory(7))
    with pytest.raises(ResourceExhausted, match=r"bytes of memory needed, 7 available"):
        preflight(recipe, tmp_path / "run")


def test_the_copies_in_memory_are_those_of_the_hungriest_stage(tmp_path):
    copies = {}
    for name, sections in {
        "plain": {},
        "taught": {"train": {"teacher": {"prompt": 1.0}}},
        "healed": {"sparsity": {"healing": {"steps": 1}}},
    }.items():
        copies[name] = copies_in_memory(tiny_recipe(tmp_path / name, **sections))
    # The weights and their merged copies; a teacher beside them; the weights, Adam's two moments and the dense model.
    assert copies == {"plain": 2, "taught": 3, "healed": 4}
