"""The preflight: what is bound to fail fails before anything is loaded or written."""

from __future__ import annotations

import shutil
import time
from collections import namedtuple

import pytest

from benchmarks.gguf_writer import write_gguf
from benchmarks.scale import SHAPES, stored_tensors
from shearling.errors import (
    ArtefactMissing,
    CheckpointUnsafe,
    ExportUnavailable,
    ModelUnsupported,
    RecipeInvalid,
    ResourceExhausted,
)
from shearling.model.figures import ModelFigures, figures_of, read_figures
from shearling.model.layers import find_layers
from shearling.recipe.model import ModelSection
from tests.support.json_files import edit_json
from tests.support.tiny_models import FAMILIES, fused_experts_config, save_tiny, tiny_tokenizer
from tests.support.tiny_runs import tiny_recipe
from train.estimates import estimate_stage, what_would_fit
from train.preflight import check_structure, find_model, preflight
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


def test_layers_that_would_stay_dense_are_refused_before_anything_is_made(tmp_path):
    recipe = tiny_recipe(tmp_path)
    config = fused_experts_config()
    config.save_pretrained(tmp_path / "source")
    with pytest.raises(ModelUnsupported, match="would stay dense") as caught:
        run_recipe(recipe, tmp_path / "run")
    assert caught.value.exit_code == 3
    assert not (tmp_path / "run").exists()


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
    with pytest.raises(ResourceExhausted, match=r"of disk needed, 5 bytes free") as caught:
        preflight(recipe, tmp_path / "deep" / "run")
    assert caught.value.exit_code == 4
    monkeypatch.undo()
    monkeypatch.setattr("shearling.resources.available_memory_bytes", lambda: 7)
    with pytest.raises(ResourceExhausted, match=r"of memory needed, 7 bytes available"):
        preflight(recipe, tmp_path / "run")


def llama_1b() -> ModelFigures:
    """As if its file were there."""
    return figures_of(stored_tensors(SHAPES["1b"]))


def estimates(tmp_path, **sections):
    return estimate_stage(tiny_recipe(tmp_path, **sections), llama_1b(), by_tensors=True)


def test_figures_are_those_of_the_model(tmp_path):
    model, found = FAMILIES["llama"](), read_figures(save_tiny("llama", tmp_path))
    transformer = find_layers(model)
    assert found.parameters == model.num_parameters()
    assert found.layers == len(transformer.layers)
    assert found.linear_parameters == sum(linear.weight.numel() for linear in transformer.linears().values())
    assert (found.hidden, found.widest) == (48, 88)
    gguf = write_gguf(tmp_path / "tiny.gguf", model, tiny_tokenizer())
    assert read_figures(gguf) == found


def test_a_layer_at_a_time_takes_a_fraction_and_healing_the_whole_model(tmp_path):
    model_bytes = 4 * llama_1b().parameters
    by_layers = estimates(tmp_path / "a", sparsity={"method": "wanda"})["sparse"]
    whole = estimates(tmp_path / "b", sparsity={"method": "wanda", "healing": {"steps": 1}})["sparse"]
    assert by_layers.memory_bytes < 0.6 * model_bytes < 4 * model_bytes < whole.memory_bytes


@pytest.mark.parametrize("train", [{}, {"gradient_checkpointing": True}, {"teacher": {"answer": 1.0}}])
def test_lean_training_takes_less(train, tmp_path):
    fast = estimates(tmp_path / "fast", train={**train, "memory": "fast"})["super_adapter"]
    lean = estimates(tmp_path / "lean", train={**train, "memory": "lean"})["super_adapter"]
    assert lean.memory_bytes < 0.85 * fast.memory_bytes


def test_memory_is_saved_where_the_recipe_leaves_it_open_and_there_is_too_little(tmp_path, monkeypatch):
    fast, lean = (estimates(tmp_path / name, train={"memory": name})["super_adapter"] for name in ("fast", "lean"))
    for available, expected in ((fast.memory_bytes, fast), (fast.memory_bytes - 1, lean)):
        monkeypatch.setattr("train.estimates.available_memory_bytes", lambda available=available: available)
        assert estimates(tmp_path / "auto")["super_adapter"] == expected


def test_every_process_of_this_machine_takes_memory(tmp_path, monkeypatch):
    alone = {name: estimates(tmp_path / name, train={"memory": name}) for name in ("fast", "lean")}
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    both = estimates(tmp_path / "both", train={"memory": "fast"})
    fast_bytes = both["super_adapter"].memory_bytes
    assert fast_bytes == 2 * alone["fast"]["super_adapter"].memory_bytes
    assert both["super_adapter"].disk_bytes == alone["fast"]["super_adapter"].disk_bytes
    assert both["sparse"] == alone["fast"]["sparse"], "one process prunes"
    monkeypatch.setattr("train.estimates.available_memory_bytes", lambda: fast_bytes - 1)
    lean_bytes = estimates(tmp_path / "auto")["super_adapter"].memory_bytes
    assert lean_bytes == 2 * alone["lean"]["super_adapter"].memory_bytes
    assert "fewer processes" in what_would_fit(tiny_recipe(tmp_path), "super_adapter")


def test_memory_is_saved_where_a_device_has_too_little(tmp_path, monkeypatch):
    fast, lean = (estimates(tmp_path / name, train={"memory": name})["super_adapter"] for name in ("fast", "lean"))
    for free_bytes, expected in ((fast.memory_bytes, fast), (fast.memory_bytes // 2, lean)):
        monkeypatch.setattr("train.estimates.free_device_bytes", lambda free_bytes=free_bytes: free_bytes)
        assert estimates(tmp_path / "auto")["super_adapter"] == expected


@pytest.mark.parametrize(
    ("part", "sections", "remedy"),
    [
        ("sparse", {"sparsity": {"healing": {"steps": 1}}}, "healing"),
        ("sparse", {"sparsity": {"allocation": "searched"}}, "searched"),
        ("sparse", {"sparsity": {"method": "wanda"}}, "samples"),
        ("super_adapter", {"train": {"memory": "fast"}}, 'memory = "lean"'),
        ("super_adapter", {}, "gradient_checkpointing"),
        ("super_adapter", {"train": {"gradient_checkpointing": True}}, "batch_size"),
        ("base", {}, "larger machine"),
    ],
)
def test_what_would_fit_is_said(part, sections, remedy, tmp_path):
    assert remedy in what_would_fit(tiny_recipe(tmp_path, **sections), part)
