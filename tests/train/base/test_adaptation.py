"""A model that is adapted before it is pruned: its LoRA, the merge into the dense weights, and what stands on it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from shearling.artefact import open_artefact, unfinished_artefact
from shearling.elastic.search_space import SEARCH_SPACE_FILE, read_search_space
from shearling.elastic.subnet import describe_subnet, open_subnet
from shearling.elastic.super_network import assemble_super_network, load_super_network
from shearling.errors import ArtefactMismatch, OutputExists, RecipeInvalid
from shearling.model.checkpoint import load_model
from shearling.recipe.recipe import Recipe, read_recipe
from shearling.run import Run
from shearling.strict_json import write_document
from tests.support.tiny_runs import HEADLINES, tiny_recipe
from train.base.adaptation import adapting_recipe
from train.screen import summarise
from train.stage import run_recipe
from train.super_adapter.tune import tune_subnet

TRAIN = {"steps": 12, "draw": "shared", "largest_first": 0.5, "teacher": {"prompt": 0.5, "answer": 2.0}}
IDS = torch.arange(3, 35).reshape(2, 16)


def recipe_in(directory: Path, **changes: object) -> Recipe:
    task = {"train_on_prompt": False}
    return tiny_recipe(directory, **{"adaptation": {}, "scaling": "rank", "task": task, "train": TRAIN, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("adapted")
    run_recipe(recipe_in(directory), directory / "run")
    return directory


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_the_adapted_model_is_the_dense_one_with_its_lora(finished: Path) -> None:
    run = Run(finished / "run")
    base, lora = open_artefact(run.base, kind="base"), open_artefact(run.lora, kind="super_adapter")
    space = read_search_space(lora.path / SEARCH_SPACE_FILE)
    assert (space.size, space.adapter.masked_training, space.scales_by_rank) == (1, False, False)
    apart = logits(assemble_super_network(base, lora, space).model)
    found, before = logits(load_model(run.adapted)), logits(load_model(run.base))
    torch.testing.assert_close(found, apart, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, before, atol=1e-2)


def test_the_closing_screen_has_them(tmp_path: Path) -> None:
    made = run_recipe(recipe_in(tmp_path), tmp_path / "run")
    artefacts = summarise(tmp_path / "run", made).data["artefacts"]
    assert list(artefacts) == ["task", "base", "lora", "adapted", "sparse", "super_adapter"]
    assert artefacts["lora"]["sub_networks"] == 1
    assert artefacts["adapted"]["parameters"] == artefacts["base"]["parameters"]


def test_it_is_what_is_pruned_and_what_teaches(finished: Path) -> None:
    run = Run(finished / "run")
    base, adapted = (open_artefact(path, kind="base") for path in (run.base, run.adapted))
    lora, task = open_artefact(run.lora, kind="super_adapter"), open_artefact(run.task, kind="task")
    sparse = open_artefact(run.sparse, kind="sparse")
    adapter = open_artefact(run.super_adapter, kind="super_adapter")
    assert lora.manifest.parents == {"base": base.sha256, "task": task.sha256}
    assert adapted.manifest.parents == {"base": base.sha256, "super_adapter": lora.sha256}
    assert sparse.manifest.parents == {"base": adapted.sha256}
    assert adapter.manifest.parents == {"sparse": sparse.sha256, "task": task.sha256}
    assert adapter.manifest.details["recipe"]["teacher"] == adapted.sha256
    # Its own teacher is the model as it came, at the prompt alone.
    assert lora.manifest.details["recipe"]["teacher"] == base.sha256
    teacher = lora.manifest.details["recipe"]["train"]["teacher"]
    assert (teacher["prompt"], teacher["answer"]) == (0.5, 0.0)
    pruned, dense = load_model(run.sparse).state_dict(), load_model(run.adapted).state_dict()
    survivors = [(pruned[name] == dense[name])[pruned[name] != 0].all() for name in pruned]
    assert all(survivors), "magnitude pruning leaves the others as they are"


def test_nothing_pruned_is_trained_on_the_adapted_model(tmp_path: Path) -> None:
    made = run_recipe(recipe_in(tmp_path, masked=False, sparse=False), tmp_path / "run")
    assert made["super_adapter"].manifest.parents["base"] == made["adapted"].sha256
    network = load_super_network(Run(tmp_path / "run"))
    module = next(iter(network.layers))
    frozen = load_model(made["adapted"].path).get_submodule(module).weight
    assert torch.equal(network.layers[module].weight, frozen)


def test_what_is_there_is_reused_and_what_differs_is_refused(copied: Path) -> None:
    run = Run(copied / "run")
    shutil.rmtree(run.super_adapter)
    before = {path: (path / "manifest.json").stat().st_mtime_ns for path in (run.lora, run.adapted, run.sparse)}
    run_recipe(recipe_in(copied, train={**TRAIN, "save_steps": 5}), run.path)
    assert before == {path: (path / "manifest.json").stat().st_mtime_ns for path in before}
    shutil.rmtree(run.super_adapter)
    other = recipe_in(copied, train={**TRAIN, "steps": 13})
    with pytest.raises(OutputExists, match="another version of its part of the recipe") as caught:
        run_recipe(other, run.path)
    assert caught.value.where == str(run.lora)
    made = run_recipe(other, run.path, force=True)
    assert made["sparse"].manifest.parents == {"base": made["adapted"].sha256}
    assert made["lora"].manifest.details["recipe"]["train"]["steps"] == 13


def test_an_interrupted_lora_is_continued_without_force(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old pruned model and the old adapter are out of the way by then."""
    run = Run(copied / "run")
    other = recipe_in(copied, train={**TRAIN, "steps": 13})

    def interrupted(*_args: object, **_options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("train.stage.train_super_adapter", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(other, run.path, force=True)
    made = run_recipe(other, run.path)
    assert made["super_adapter"].manifest.details["recipe"]["train"]["steps"] == 13


def test_a_recipe_without_it_takes_it_away(copied: Path) -> None:
    run = Run(copied / "run")
    plain = recipe_in(copied, adaptation=None)
    run_recipe(plain, run.path, force=True)
    assert not run.adapted.exists()
    assert not run.lora.exists()
    assert not unfinished_artefact(run.lora).exists()


def test_without_force_it_is_in_the_way_of_a_recipe_without_it(copied: Path) -> None:
    """A run is opened by what stands in it: the adapter of another dense model would be refused when it is trained."""
    run = Run(copied / "run")
    shutil.rmtree(run.super_adapter)
    with pytest.raises(OutputExists, match=r"no \[model\.adaptation\]") as caught:
        run_recipe(recipe_in(copied, adaptation=None, sparse=False, masked=False), run.path)
    assert caught.value.where == str(run.adapted)


def test_a_lora_that_has_learnt_other_data_is_refused(tmp_path: Path) -> None:
    more = {**HEADLINES, "name": "more"}
    run = Run(tmp_path / "run")
    run_recipe(recipe_in(tmp_path, data=[more]), run.path)
    shutil.rmtree(run.super_adapter)
    with pytest.raises(OutputExists, match="another version of its part of the recipe") as caught:
        run_recipe(recipe_in(tmp_path), run.path)
    assert caught.value.where == str(run.lora)


def test_a_sub_network_is_tuned_by_the_same_teacher(copied: Path) -> None:
    run = Run(copied / "run")
    adapter = open_artefact(run.super_adapter, kind="super_adapter")
    space = read_search_space(adapter.path / SEARCH_SPACE_FILE)
    document = run.path / "chosen.json"
    described = describe_subnet(
        adapter, space.minimal(), subnet_id="x", location=run.path, metrics=None, provenance=None
    )
    write_document(document, described)
    tuned = tune_subnet(open_subnet(document), steps=2, learning_rate=1e-3)
    details = open_artefact(tuned.with_suffix(""), kind="super_adapter").manifest.details
    assert details["teacher"] == open_artefact(run.adapted, kind="base").sha256


def test_an_adapted_model_of_another_run_is_refused(copied: Path) -> None:
    run = Run(copied / "run")
    made = run_recipe(recipe_in(copied / "other", masked=False, sparse=False), copied / "other" / "run")
    shutil.rmtree(Run(copied / "other" / "run").adapted)
    shutil.copytree(run.adapted, Run(copied / "other" / "run").adapted)
    with pytest.raises(ArtefactMismatch, match="not the one that the adapter was trained on"):
        load_super_network(Run(made["super_adapter"].path.parent))


def test_what_says_how_must_be_there(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path)
    data = recipe.model_dump(by_alias=True, exclude={"adapter", "train"})
    with pytest.raises(ValueError, match="they say how"):
        Recipe.model_validate(data)
    classifier = tmp_path / "classifier.toml"
    text = (tmp_path / "recipe.toml").read_text()
    classifier.write_text(text.replace("[model]", '[model]\nhead = "classifier"'))
    with pytest.raises(RecipeInvalid, match="needs a language model"):
        read_recipe(classifier)


def test_the_lora_has_the_settings_of_the_recipe(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path)
    adapting = adapting_recipe(recipe)
    assert adapting is not None
    assert (adapting.train.steps, adapting.train.learning_rate) == (recipe.train.steps, recipe.train.learning_rate)
    assert all(group.ranks == group.ranks[:1] for group in adapting.adapter.groups)
    assert adapting.train.teacher is not None
    everything = adapting_recipe(recipe_in(tmp_path, task={"train_on_prompt": True}))
    assert everything is not None
    assert everything.train.teacher is None, "there is nothing at which it would teach"
    assert adapting_recipe(adapting) is None
    assert adapting_recipe(recipe_in(tmp_path, adaptation=None)) is None


def test_the_lora_may_be_trained_for_longer(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, adaptation={"steps": 30}, train={**TRAIN, "steps": None, "epochs": 2})
    adapting = adapting_recipe(recipe)
    assert adapting is not None
    assert (adapting.train.steps, adapting.train.epochs) == (30, None)
    assert (recipe.train.steps, recipe.train.epochs) == (None, 2)
