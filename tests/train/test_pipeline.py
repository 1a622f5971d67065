"""The stage as a whole: what fits is reused, what was made from something else is refused, force replaces."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from search.front import BestRule
from search.stage import search
from shearling.artefact import open_artefact, unfinished_artefact
from shearling.elastic.super_network import ADAPTER_FILE
from shearling.errors import (
    ArtefactCorrupt,
    ArtefactMismatch,
    ArtefactMissing,
    DocumentInvalid,
    ModelUnsupported,
    OutputExists,
    RecipeInvalid,
)
from shearling.evaluation.task import SPLITS, read_rows
from shearling.model.checkpoint import save_model
from shearling.recipe.recipe import read_recipe
from shearling.recipe.training import TeacherSection
from shearling.run import Run
from shearling.strict_json import read_json
from tests.support.small_searches import SMALL_SEARCH
from tests.support.tiny_models import BEYOND, FAMILIES, longer_tokenizer, tiny_tokenizer
from tests.support.tiny_runs import tiny_recipe, write_tiny_recipe
from train.stage import _check_replaceable, run_recipe

SETTINGS = replace(SMALL_SEARCH, algorithm="random", evaluations=1, limit=4)
KINDS = ("task", "base", "sparse", "super_adapter")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pipeline")
    run_recipe(tiny_recipe(directory), directory / "run")
    return directory


@pytest.fixture
def unfinished(finished, tmp_path):
    """A run whose last artefact is missing, with its recipe's inputs beside it."""
    shutil.copytree(finished, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "run" / "super_adapter")
    return tmp_path / "copy"


def digests(run):
    return {kind: open_artefact(getattr(Run(run), kind), kind=kind).sha256 for kind in KINDS[:3]}


def test_artefacts_form_a_chain(finished):
    run = Run(finished / "run")
    task, base, sparse, adapter = (open_artefact(getattr(run, kind), kind=kind) for kind in KINDS)
    assert sparse.manifest.parents == {"base": base.sha256}
    assert adapter.manifest.parents == {"sparse": sparse.sha256, "task": task.sha256}
    facts = read_json(run.task / "task.json")
    assert facts == {
        "name": "headlines",
        "multiple_choice": True,
        "rows": {split: len(read_rows(run.task, split)) for split in SPLITS},
        "left_out": {},
    }
    assert adapter.manifest.details["recipe"]["train"]["steps"] == 6


def test_what_is_there_is_reused(unfinished):
    before = digests(unfinished / "run")
    adapter = run_recipe(tiny_recipe(unfinished), unfinished / "run")["super_adapter"]
    assert digests(unfinished / "run") == before
    assert adapter.manifest.parents["sparse"] == before["sparse"]


def test_what_was_made_before_a_key_existed_is_reused(unfinished):
    """A manifest without today's newest keys: their defaults are what it was made by."""
    run = Run(unfinished / "run")
    for path, keys in ((run.task, ["train_on_end", "answer"]), (run.sparse, ["allocation", "healing"])):
        file = path / "manifest.json"
        manifest = json.loads(file.read_text())
        for key in keys:
            del manifest["details"]["recipe"][key]
        file.write_text(json.dumps(manifest))
    made = run_recipe(tiny_recipe(unfinished), unfinished / "run")
    assert set(made) == set(KINDS)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"task": {"max_length": 24}}, "task", "recipe"),
        ({"sparsity": {"ratio": 0.25}}, "sparse", "recipe"),
        ({"seed": 4}, "sparse", "seed"),
        ({"rows": 81}, "task", "made from another version of its data"),
    ],
)
def test_an_artefact_of_another_recipe_is_refused(unfinished, changes, kind, message):
    before = digests(unfinished / "run")
    with pytest.raises(OutputExists, match=message) as caught:
        run_recipe(tiny_recipe(unfinished, **changes), unfinished / "run")
    assert caught.value.exit_code == 2
    assert caught.value.where.endswith(kind)
    assert digests(unfinished / "run") == before


def test_data_that_has_gone_is_named_and_not_called_another(unfinished):
    recipe = tiny_recipe(unfinished)
    (unfinished / "headlines.jsonl").unlink()
    with pytest.raises(ArtefactMissing, match="no such data file or directory") as caught:
        run_recipe(recipe, unfinished / "run")
    assert caught.value.where == str(recipe.task.path)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("options", "section"),
    [
        ({"adaptation": {"steps": 2}, "sparsity": {"method": "wanda"}}, "sparsity.calibration"),
        ({"sparsity": {"healing": {"steps": 1}}}, "sparsity.calibration"),
        ({"quantization": {"bits": 8}}, "quantization.calibration"),
        ({"width": {"feed_forward": [100, 60], "reorder": "wanda"}}, "width.calibration"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_calibration_text_that_is_not_there_is_refused_before_anything_is_made(options, section, tmp_path):
    recipe = write_tiny_recipe(tmp_path, **options)
    text = recipe.read_text()
    assert f"[{section}]\n" in text
    recipe.write_text(text.replace(f"[{section}]\n", f'[{section}]\npath = "nowhere.txt"\n'))
    with pytest.raises(ArtefactMissing, match="calibration text") as caught:
        run_recipe(read_recipe(recipe), tmp_path / "run")
    assert f"[{section}]" in caught.value.remedy
    assert caught.value.where == str(tmp_path / "nowhere.txt")
    assert not (tmp_path / "run").exists()


MORE = {"name": "more", "path": "headlines.jsonl", "text": "{{ headline }}", "prompt": "{{ text }}", "max_length": 8}


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"task": {"max_length": 8, "train_on_prompt": False}}, "task.max_length"),
        ({"data": [{**MORE, "completion": " {{ label }}", "train_on_prompt": False}]}, "data.more.max_length"),
        ({"quantization": {"bits": 8}, "rows": 10}, "quantization.calibration.seq_len"),
    ],
)
def test_nothing_to_learn_and_nothing_to_calibrate_on_are_refused_before_pruning(options, where, tmp_path):
    recipe = write_tiny_recipe(tmp_path, **options)
    recipe.write_text(recipe.read_text().replace("samples = 8\nseq_len = 32", "samples = 8\nseq_len = 256"))
    with pytest.raises(RecipeInvalid) as caught:
        run_recipe(read_recipe(recipe), tmp_path / "run")
    assert caught.value.where == where
    assert not (tmp_path / "run" / "sparse").exists()


def test_rows_with_a_token_that_the_model_has_no_embedding_of_are_refused_before_pruning(tmp_path):
    save_model(FAMILIES["llama_tied_gqa"](), longer_tokenizer(), tmp_path / "source")
    recipe = tiny_recipe(tmp_path, task={"prompt": f"{BEYOND} {{{{ text }}}}\nSarcastic:"})
    with pytest.raises(ModelUnsupported, match=re.escape(BEYOND)) as caught:
        run_recipe(recipe, tmp_path / "run")
    assert caught.value.where == "task"
    assert caught.value.exit_code == 3
    assert not (tmp_path / "run" / "sparse").exists()


def test_a_changed_directory_of_datasets_is_refused_wherever_the_command_is_run(tmp_path, monkeypatch):
    import datasets

    rows = [{"headline": f"Report {number}", "label": number % 2} for number in range(80)]
    saved, elsewhere = tmp_path / "data" / "saved", tmp_path / "elsewhere"
    elsewhere.mkdir()
    datasets.Dataset.from_list(rows).save_to_disk(str(saved))
    recipe = write_tiny_recipe(tmp_path, task={"path": None, "dataset": {"name": "data/saved"}}, train={"steps": 1})
    monkeypatch.chdir(elsewhere)
    run_recipe(read_recipe(recipe), tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "super_adapter")
    monkeypatch.chdir(tmp_path)
    run_recipe(read_recipe(Path("recipe.toml")), tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "super_adapter")
    shutil.rmtree(saved)
    datasets.Dataset.from_list(rows[:70]).save_to_disk(str(saved))
    with pytest.raises(OutputExists, match="another version of its data"):
        run_recipe(read_recipe(recipe), tmp_path / "run")


def calibrated_on(recipe, text):
    calibration = recipe.sparsity.calibration.model_copy(update={"path": text})
    return recipe.model_copy(update={"sparsity": recipe.sparsity.model_copy(update={"calibration": calibration})})


def test_another_calibration_text_of_the_same_name_is_refused(tmp_path):
    recipe, text = (
        calibrated_on(tiny_recipe(tmp_path, sparsity={"method": "wanda"}), tmp_path / "text.txt"),
        tmp_path / "text.txt",
    )
    text.write_text("the quick brown fox jumps over the lazy dog " * 99)
    run_recipe(recipe.model_copy(update={"adapter": None, "train": None}), tmp_path / "run")
    text.write_text("a lazy dog sleeps under the quick brown fox " * 99)
    with pytest.raises(OutputExists, match="another calibration text"):
        run_recipe(recipe, tmp_path / "run")


@pytest.mark.parametrize("model_id", ["tiny/other", "tiny/llama_tied_gqa"])
def test_another_model_is_refused_under_any_name(unfinished, model_id):
    recipe = tiny_recipe(unfinished)
    FAMILIES["llama"]().save_pretrained(str(unfinished / "other"))
    tiny_tokenizer().save_pretrained(str(unfinished / "other"))
    model = recipe.model.model_copy(update={"path": unfinished / "other", "model_id": model_id})
    with pytest.raises(OutputExists) as caught:
        run_recipe(recipe.model_copy(update={"model": model}), unfinished / "run")
    assert caught.value.where.endswith("base")


def test_a_remade_parent_is_noticed(unfinished):
    # Pruned anew with the same settings, but from a base whose manifest differs.
    shutil.rmtree(unfinished / "run" / "base")
    recipe = tiny_recipe(unfinished)
    renamed = recipe.model_copy(update={"model": recipe.model.model_copy(update={"model_id": "tiny/renamed"})})
    with pytest.raises(OutputExists, match="its base"):
        run_recipe(renamed, unfinished / "run")


def test_a_damaged_artefact_is_not_built_upon(unfinished):
    file = unfinished / "run" / "sparse" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ArtefactCorrupt, match=r"model\.safetensors"):
        run_recipe(tiny_recipe(unfinished), unfinished / "run")


def test_force_replaces_everything(unfinished):
    before = digests(unfinished / "run")
    made = run_recipe(
        tiny_recipe(unfinished, sparsity={"ratio": 0.25}, task={"max_length": 24}), unfinished / "run", force=True
    )
    assert made["sparse"].manifest.details["sparsity"]["target"] == 0.25
    assert digests(unfinished / "run")["sparse"] != before["sparse"]
    assert (unfinished / "run" / "super_adapter" / ADAPTER_FILE).is_file()


def test_force_that_fails_keeps_what_it_has_not_replaced(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copy")
    run = Run(tmp_path / "copy" / "run")
    checkpoint = unfinished_artefact(run.super_adapter) / "checkpoints" / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    before = {kind: open_artefact(getattr(run, kind), kind=kind).sha256 for kind in ("sparse", "super_adapter")}
    wanda = tiny_recipe(tmp_path / "copy", sparsity={"method": "wanda"})
    with pytest.raises(ArtefactMissing, match="calibration text"):
        run_recipe(calibrated_on(wanda, tmp_path / "nowhere.txt"), run.path, force=True)
    (tmp_path / "latin.txt").write_bytes(b"\xe9" * 9999)
    with pytest.raises(DocumentInvalid, match="not UTF-8"):
        run_recipe(calibrated_on(wanda, tmp_path / "latin.txt"), run.path, force=True)
    assert {kind: open_artefact(getattr(run, kind), kind=kind).sha256 for kind in before} == before
    assert checkpoint.is_dir()
    # Task and base are new by now: the old adapter must not be searched on rows that it may have learnt.
    with pytest.raises(ArtefactMismatch, match="trained on another"):
        search(run, SETTINGS, BestRule())


def with_source(recipe, role, path):
    if role == "model":
        return recipe.model_copy(update={"model": recipe.model.model_copy(update={"path": path})})
    if role == "calibration":
        return calibrated_on(recipe, path / "train.jsonl")
    if role == "teacher":
        train = recipe.train.model_copy(update={"teacher": TeacherSection(path=path)})
        return recipe.model_copy(update={"train": train})
    other = recipe.task.model_copy(update={"name": "other", "path": path / "train.jsonl"})
    return recipe.model_copy(update={"data": (other,)} if role == "data" else {"task": other})


@pytest.mark.parametrize(
    ("role", "room"),
    [("model", "base"), ("teacher", "adapted"), ("calibration", "task"), ("task", "task"), ("data", "data/other")],
)
def test_force_replaces_nothing_that_the_recipe_reads(role, room, finished, tmp_path):
    shutil.copytree(finished / "run", tmp_path / "run")
    run, recipe = Run(tmp_path / "run"), tiny_recipe(tmp_path, sparsity={"method": "wanda"})
    if room == "adapted":
        shutil.copytree(run.base, run.adapted)
    elif room == "data/other":
        shutil.copytree(run.task, run.path / room)
    before = sorted((path, path.stat().st_mtime_ns) for path in run.path.rglob("*"))
    with pytest.raises(OutputExists, match="holds what the output is made from") as caught:
        run_recipe(with_source(recipe, role, run.path / room), run.path, force=True)
    assert caught.value.where == str(run.path / room)
    assert sorted((path, path.stat().st_mtime_ns) for path in run.path.rglob("*")) == before


def test_force_goes_on_in_a_run_beside_its_data(finished, tmp_path):
    """That a directory of data holds the run endangers neither."""
    shutil.copytree(finished / "run", tmp_path / "run")
    recipe = tiny_recipe(tmp_path)
    _check_replaceable(Run(tmp_path / "run"), with_source(recipe, "model", tmp_path))


def test_force_without_pruning_removes_the_pruned_model(unfinished):
    run_recipe(tiny_recipe(unfinished, sparse=False, masked=False), unfinished / "run", force=True)
    assert not (unfinished / "run" / "sparse").exists()


def test_without_an_adapter_the_run_ends_with_the_pruned_model(tmp_path):
    recipe = tiny_recipe(tmp_path).model_copy(update={"adapter": None, "train": None})
    assert tuple(run_recipe(recipe, tmp_path / "run")) == KINDS[:3]
    assert not (tmp_path / "run" / "super_adapter").exists()
    with pytest.raises(OutputExists):
        run_recipe(recipe, tmp_path / "run")


def test_without_pruning_the_adapter_stands_on_the_dense_base(tmp_path):
    made = run_recipe(tiny_recipe(tmp_path, sparse=False, masked=False), tmp_path / "run")
    assert tuple(made) == ("task", "base", "super_adapter")
    assert made["super_adapter"].manifest.parents == {"base": made["base"].sha256, "task": made["task"].sha256}


def test_a_tokenizer_that_neither_begins_nor_ends_a_text_is_refused_before_pruning(tmp_path):
    recipe = tiny_recipe(tmp_path)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        file = recipe.model.path / name
        if file.is_file():
            file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "eos_token"}))
    with pytest.raises(ModelUnsupported, match=r"neither a beginning nor an end of text.*eos_token"):
        run_recipe(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "sparse").exists()
