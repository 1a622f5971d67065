"""The preflight: what is bound to fail fails before anything is loaded or written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import replace

import pytest

import train.preflight
from benchmarks.gguf_writer import write_gguf
from benchmarks.scale import SHAPES, stored_tensors
from shearling.errors import (
    ArtefactCorrupt,
    ArtefactMissing,
    CheckpointUnsafe,
    ExportUnavailable,
    ModelUnsupported,
    RecipeInvalid,
    ResourceExhausted,
)
from shearling.model.figures import ModelFigures, figures_of, read_figures
from shearling.model.layers import find_layers
from shearling.model.weight_shards import StoredTensor
from shearling.recipe.model import ModelSection
from shearling.resources import Estimate
from tests.support.json_files import edit_json
from tests.support.tiny_models import FAMILIES, fused_experts_config, save_tiny, tiny_tokenizer
from tests.support.tiny_runs import tiny_recipe
from train.estimates import choosing_memory_bytes, estimate_stage, what_would_fit
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


def cut_short(source):
    file = source / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return file


def leave_a_pointer(source):
    """What `git clone` leaves without Git LFS."""
    file = source / "model.safetensors"
    file.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0123abcd' * 8}\nsize 269060552\n")
    return file


def leave_a_shard_out(source):
    (source / "model.safetensors").unlink()
    shard = source / "model-00001-of-00001.safetensors"
    index = {"metadata": {}, "weight_map": {"model.norm.weight": shard.name}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    return shard


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (cut_short, ArtefactCorrupt, "not a readable safetensors file"),
        (leave_a_pointer, ArtefactCorrupt, "a pointer of Git LFS.* git lfs pull"),
        (leave_a_shard_out, ArtefactMissing, "a shard that the index names is not there"),
    ],
)
def test_a_download_that_is_not_complete_is_refused_before_anything_is_made(damage, error, message, tmp_path):
    recipe = tiny_recipe(tmp_path)
    file = damage(tmp_path / "source")
    for refuse in (lambda: find_model(recipe.model), lambda: run_recipe(recipe, tmp_path / "run")):
        with pytest.raises(error, match=message) as caught:
            refuse()
        assert caught.value.where == str(file)
        assert caught.value.exit_code == 3
        assert caught.value.remedy
    assert not (tmp_path / "run").exists()


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


def test_one_process_checks_the_memory_for_all(tmp_path, monkeypatch):
    """The others do so while it prunes, and would count what it holds a second time."""
    recipe = tiny_recipe(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("shearling.resources.available_memory_bytes", lambda: 7)
    monkeypatch.setenv("RANK", "1")
    preflight(recipe, tmp_path / "run")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ResourceExhausted, match="of memory needed"):
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


def test_a_small_vocabulary_is_not_taken_for_the_width():
    narrow = {"model.embed_tokens.weight": StoredTensor("float32", (64, 2048))}
    assert (figures_of(narrow).hidden, figures_of(narrow).vocabulary) == (2048, 64)


def test_a_teacher_counts_by_its_own_size(tmp_path):
    save_tiny("llama", tmp_path / "teacher")
    train = {"steps": 2, "memory": "fast", "teacher": {"prompt": 1.0}}
    own = estimates(tmp_path, task={"train_on_prompt": False}, train=train)["super_adapter"]
    train["teacher"] = {"prompt": 1.0, "path": str(tmp_path / "teacher")}
    tiny = estimates(tmp_path, task={"train_on_prompt": False}, train=train)["super_adapter"]
    assert own.memory_bytes - tiny.memory_bytes > llama_1b().parameters


def test_merged_weights_of_validation_and_a_long_row_in_a_short_pack_are_counted(tmp_path):
    train = {"steps": 2, "memory": "fast", "gradient_checkpointing": True}
    plain, validated = (
        estimates(tmp_path, train=train | more)["super_adapter"].memory_bytes for more in ({}, {"eval_steps": 1})
    )
    assert validated >= plain + llama_1b().linear_parameters
    short, unpacked = (
        estimates(tmp_path, task={"max_length": 256}, train=train | more)["super_adapter"].memory_bytes
        for more in ({"pack_tokens": 16, "batch_size": 1}, {"batch_size": 1})
    )
    assert short == unpacked


def test_a_checkpoint_under_other_names_is_loaded_as_a_whole(tmp_path):
    recipe, found = tiny_recipe(tmp_path), []
    for place in ("plain", "inner"):
        model = FAMILIES["llama"]()
        (model if place == "plain" else model.model).save_pretrained(tmp_path / place)
        section = recipe.model.model_copy(update={"path": tmp_path / place})
        found.append(train.preflight.expected(recipe, find_model(section))["base"].memory_bytes)
    assert found[1] > found[0]


ONE_MATRIX = """
import sys

import torch

from shearling.calibration.gram import Gram
from shearling.recipe.sparsity import SparsitySection
from shearling.registry.pruning_methods import PRUNING_METHODS
from train.sparsity.pattern import competing_block, make_pattern
from train.sparsity.reconstruction.conjugate_gradients import refit
from train.sparsity.reconstruction.mask_swaps import swap_weights

section = SparsitySection.model_validate_json(sys.argv[1])
out, columns = map(int, sys.argv[2:])
weight, inputs, gram = torch.randn(out, columns), torch.randn(256, columns), Gram()
gram.add_product(inputs.T @ inputs, tokens=256)
pattern, method = make_pattern(section.pattern, ratio=section.ratio), PRUNING_METHODS.get(section.method)
torch.linalg.eigh(torch.eye(64))  # what libraries take once


def told(name):
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith(name))


with open("/proc/self/clear_refs", "w") as peak:
    peak.write("5")
before = told("VmRSS")
if method.needs_gram:
    method.load()(gram).prune(weight, pattern, where="linear")
else:
    mask, hessian = pattern.keep(weight.abs()), gram.damped(where="linear")
    pruned = weight * mask
    if section.reconstruction.swaps:
        block = competing_block(pattern, where="linear")
        mask, pruned = swap_weights(weight, pruned, mask, hessian, block=block, swaps=section.reconstruction.swaps)
    refit(weight, pruned, mask, hessian, steps=section.reconstruction.matrix_steps)
print(told("VmHWM") - before)
"""


@pytest.mark.parametrize(
    ("out", "columns", "sparsity"),
    [
        (64, 3072, {"method": "alps"}),
        (64, 3072, {"method": "sparsegpt"}),
        (64, 3072, {"method": "wanda", "reconstruction": {"matrix_steps": 2}}),
        (3072, 512, {"method": "alps"}),
        (3072, 512, {"method": "wanda", "reconstruction": {"matrix_steps": 2}}),
        (3072, 512, {"method": "wanda", "pattern": "4:8", "reconstruction": {"swaps": 2, "matrix_steps": 1}}),
    ],
)
def test_what_one_matrix_takes_while_it_is_chosen_is_counted(out, columns, sparsity, tmp_path):
    """Beside the matrix itself, and what had been gathered, in a process of its own."""
    section = tiny_recipe(tmp_path, sparsity=sparsity).sparsity
    figures = figures_of({"layers.0.linear.weight": StoredTensor("float32", (out, columns))})
    command = [sys.executable, "-c", ONE_MATRIX, section.model_dump_json(), str(out), str(columns)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    gathered_bytes = 4 * columns**2
    said = choosing_memory_bytes(figures, section)
    assert 0.4 * said < int(done.stdout) + gathered_bytes <= said


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
    recipe, short = tiny_recipe(tmp_path), Estimate(2**60)
    assert "fewer processes" in what_would_fit(recipe, "super_adapter", short)


def on_a_device(monkeypatch, free_bytes=2**40):
    for module in ("train.estimates", "shearling.resources"):
        monkeypatch.setattr(f"{module}.free_device_bytes", lambda: free_bytes)


@pytest.mark.parametrize("section", [{"train": {"memory": "fast"}}, {"train": {"teacher": {"answer": 1.0}}}])
def test_a_training_on_a_device_keeps_the_libraries_and_loads_the_weights_in_the_memory_of_the_machine(
    section, tmp_path, monkeypatch
):
    monkeypatch.setattr("train.estimates.available_memory_bytes", lambda: 2**50)
    here = estimates(tmp_path / "here", **section)["super_adapter"]
    assert here.device_bytes == 0
    on_a_device(monkeypatch)
    there = estimates(tmp_path / "there", **section)["super_adapter"]
    models = 2 if "teacher" in section["train"] else 1
    weights_bytes = 4 * llama_1b().parameters
    assert there.memory_bytes < 2**31 + models * 1.1 * weights_bytes < here.memory_bytes
    assert here.memory_bytes - 2**31 < there.device_bytes < here.memory_bytes
    assert there.disk_bytes == here.disk_bytes


def test_every_process_has_a_device_and_loads_the_weights_itself(tmp_path, monkeypatch):
    on_a_device(monkeypatch)
    alone = {name: estimates(tmp_path / name, train={"memory": name})["super_adapter"] for name in ("fast", "lean")}
    assert estimates(tmp_path / "auto")["super_adapter"] == alone["fast"]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    twice = {name: replace(one, memory_bytes=2 * one.memory_bytes) for name, one in alone.items()}
    for available, expected in ((twice["fast"].memory_bytes, "fast"), (twice["fast"].memory_bytes - 1, "lean")):
        monkeypatch.setattr("train.estimates.available_memory_bytes", lambda available=available: available)
        assert estimates(tmp_path / "auto")["super_adapter"] == twice[expected]


def test_memory_is_saved_where_a_device_has_too_little(tmp_path, monkeypatch):
    on_a_device(monkeypatch)
    fast, lean = (estimates(tmp_path / name, train={"memory": name})["super_adapter"] for name in ("fast", "lean"))
    for free_bytes, expected in ((fast.device_bytes, fast), (fast.device_bytes - 1, lean)):
        on_a_device(monkeypatch, free_bytes)
        assert estimates(tmp_path / "auto")["super_adapter"] == expected


def test_a_device_with_too_little_memory_is_told_before_anything_is_made(tmp_path, monkeypatch):
    recipe = tiny_recipe(tmp_path)
    on_a_device(monkeypatch, 7)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ResourceExhausted, match="of a device needed, 7 bytes free") as caught:
        preflight(recipe, tmp_path / "run")
    assert "gradient_checkpointing" in caught.value.remedy, "fewer processes would free no device"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("part", "sections", "remedy"),
    [
        ("sparse", {"sparsity": {"healing": {"steps": 1}}}, "healing"),
        ("sparse", {"sparsity": {"allocation": "searched"}}, "searched"),
        ("sparse", {"sparsity": {"method": "wanda"}}, "samples"),
        ("super_adapter", {"train": {"memory": "fast"}}, 'memory = "lean"'),
        ("super_adapter", {"train": {"memory": "fast"}, "quantization": {"bits": 4}}, "gradient_checkpointing"),
        ("super_adapter", {}, "gradient_checkpointing"),
        ("super_adapter", {"train": {"gradient_checkpointing": True}}, "batch_size"),
        ("base", {}, "larger machine"),
    ],
)
def test_what_would_fit_is_said(part, sections, remedy, tmp_path):
    recipe = tiny_recipe(tmp_path, **sections)
    assert remedy in what_would_fit(recipe, part, Estimate(2**60))


def test_a_machine_that_cannot_load_the_weights_for_a_device_is_helped_by_nothing_that_the_device_holds(tmp_path):
    assert "larger machine" in what_would_fit(tiny_recipe(tmp_path), "super_adapter", Estimate(2**60, 0, 1))
    assert "gradient_check" in what_would_fit(tiny_recipe(tmp_path), "super_adapter", Estimate(1, 0, 2**60))
