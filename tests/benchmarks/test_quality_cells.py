"""The cells of the benchmark of quality: their recipes are recipes, and a finished one is not run again."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.kept_cells import cell_file
from benchmarks.peers import CALIBRATED, QUANTIZATIONS
from benchmarks.quality import carry_out
from benchmarks.quality.__main__ import main
from benchmarks.quality.arms import ARMS, BASELINE, Arm, parse_ratio
from benchmarks.quality.cell import LLAMA_CPP_FILES, Cell, CellDocument, cross, read_cells, unfinished
from benchmarks.quality.models import MODELS, shipped_recipe
from benchmarks.quality.tasks import TASKS
from shearling.errors import RecipeInvalid, UsageError
from shearling.recipe.recipe import Recipe, stored_recipe
from shearling.run import Run
from shearling.strict_json import write_document
from tests.support.quality_cells import cell_document, subnet_figures
from train.base.adaptation import adapting_recipe
from train.super_adapter.artefact import recipe_inputs
from train.super_adapter.resumption import deciding_inputs, differing_keys

RATIOS = tuple(parse_ratio(text) for text in ("0.5", "0.7", "2:4"))


def all_cells(*, seeds: tuple[int, ...] = (0,)) -> dict[str, Cell]:
    return cross(
        [model() for model in MODELS.values()],
        [task() for task in TASKS.values()],
        seeds,
        RATIOS,
        ARMS.values(),
    )


@pytest.mark.parametrize("arm", list(ARMS))
def test_every_cell_has_a_valid_recipe(arm: str) -> None:
    cells = [cell for cell in all_cells().values() if cell.arm.name == arm]
    decoders_alone = ARMS[arm].adapted or arm == "searched"
    assert {cell.model.name for cell in cells} == ({"smollm2"} if decoders_alone else set(MODELS))
    for cell in cells:
        sparsity = Recipe.model_validate(cell.recipe()).sparsity
        if cell.ratio is None or sparsity is None:
            assert cell.ratio is sparsity is None
        else:
            expected = ("2:4", 0.5) if cell.ratio.text == "2:4" else ("unstructured", float(cell.ratio.text))
            assert (sparsity.pattern, sparsity.ratio) == expected


def test_a_baseline_without_files_that_are_asked_for_is_carried_out_anew(tmp_path: Path) -> None:
    cells = all_cells()
    for name in ("smollm2-poker-0-0-dense-taught", "minilm-poker-0-0-dense-taught", "smollm2-poker-0-0-dense"):
        finish(cells[name], tmp_path)
    complete = finish(cells["smollm2-sarcasm-0-0-dense-taught"], tmp_path)
    files = tuple(subnet_figures(0.5, subnet=name) for name in ("largest", *LLAMA_CPP_FILES))
    path = cell_file(tmp_path, "smollm2-sarcasm-0-0-dense-taught")
    write_document(path, complete.model_copy(update={"subnets": files}))
    left = unfinished(cells, tmp_path)
    more = [cell.name for cell in unfinished(cells, tmp_path, llama_cpp=True) if cell not in left]
    assert more == ["smollm2-poker-0-0-dense-taught"]


def test_an_environment_without_llama_cpp_is_refused_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--output", str(tmp_path / "table"), "--llama-cpp", str(tmp_path / "typo")]) == 4
    assert "typo: no virtual environment here" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "table").exists()


@pytest.mark.parametrize("other", ["rows", "text"])
def test_cells_of_one_task_were_asked_the_same_rows_and_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], other: str
) -> None:
    cells, options = all_cells(), ["--output", str(tmp_path), "--report"]
    names = ["smollm2-poker-0-0-dense", "smollm2-poker-0-0.5-wanda", "smollm2-sarcasm-0-0-dense"]
    documents = [finish(cells[name], tmp_path) for name in names]
    assert main(options) == 0
    rows = tuple(figures.model_copy(update={"rows_sha256": "2" * 64}) for figures in documents[2].subnets)
    changes = {"subnets": rows} if other == "rows" else {"general_text_sha256": "2" * 64}
    write_document(cell_file(tmp_path, names[2]), documents[2].model_copy(update={"subnets": rows}))
    assert main(options) == 0, "another task has other rows"
    write_document(cell_file(tmp_path, names[1]), documents[1].model_copy(update=changes))
    capsys.readouterr()
    assert main(options) == 2
    said = "".join(capsys.readouterr().err.split())
    assert f"{names[1]}.json" in said
    assert "askedotherrowsoranothertext" in said


def test_what_others_serve_is_what_llama_cpp_writes() -> None:
    written = {*QUANTIZATIONS, *(f"{name}-imatrix" for name in CALIBRATED)}
    assert set(LLAMA_CPP_FILES) <= written
    assert all(arm.sparsity is None for arm in ARMS.values() if arm.served), "no mask would be kept"


def test_the_baseline_is_trained_as_every_other_arm() -> None:
    recipes = [cell.recipe() for cell in all_cells().values() if cell.arm.name in ("dense", "wanda")]
    for model in MODELS:
        own = [recipe for recipe in recipes if recipe["name"].startswith(model)]
        assert len({json.dumps([recipe["train"], recipe["adapter"]["groups"]]) for recipe in own}) == 1


@pytest.mark.parametrize("arm", [arm for arm in ARMS.values() if arm.ranks == "elastic"], ids=lambda arm: arm.name)
def test_an_elastic_arm_says_how_ranks_are_drawn_and_scaled(arm: Arm) -> None:
    assert {"draw", "largest_first"} <= arm.train.keys()
    assert "scaling" in arm.adapter


def test_published_cells_leave_nothing_to_defaults_that_have_changed() -> None:
    """Their recipes say it, or it decides nothing: where there is one rank."""
    published = read_cells(Path(__file__).resolve().parents[2] / "docs" / "quality")
    assert len(published) > 30
    for cell in published:
        today, then = (Recipe.model_validate(sections) for sections in (cell.recipe, stored_recipe(cell.recipe)))
        first, second = (deciding_inputs(recipe_inputs(recipe)) for recipe in (today, then))
        # A classifier learns the labels of its rows, and no token of them.
        learnt = {"task.train_on_prompt", "task.train_on_end"} if today.model.head == "classifier" else set()
        assert set(differing_keys(first, second)) <= learnt, cell.recipe["name"]


def test_a_cell_that_left_to_older_defaults_what_its_arm_says_today_is_its_own(tmp_path: Path) -> None:
    cells = all_cells()
    for name, kept in (("smollm2-poker-0-0.5-wanda-elastic", True), ("smollm2-poker-0-0.5-elastic", False)):
        document = finish(cells[name], tmp_path)
        older = json.loads(json.dumps(document.recipe))
        for section, key in (("train", "draw"), ("train", "largest_first"), ("adapter", "scaling")):
            del older[section][key]
        write_document(cell_file(tmp_path, name), document.model_copy(update={"recipe": older}))
        if kept:
            assert cells[name] not in unfinished(cells, tmp_path)
        else:
            with pytest.raises(UsageError, match="another recipe"):
                unfinished(cells, tmp_path)


@pytest.mark.parametrize(("base", "name"), [("elastic", "elastic"), ("adapted-elastic", "adapted")])
def test_arms_that_draw_otherwise_are_compared_at_equal_forwards(base: str, name: str) -> None:
    cells = all_cells()

    def recipe_of(arm: str) -> Recipe:
        return Recipe.model_validate(cells[f"smollm2-poker-0-0.5-{arm}"].recipe())

    reference = recipe_of(base)
    changed = {}
    for what in ("progressive", "nested", "nested-by-rank", "sandwich"):
        other = recipe_of(f"{name}-{what}")
        forwards = other.train.steps * (3 if other.train.sandwich else 1)
        assert 0.98 * reference.train.steps <= forwards <= reference.train.steps
        changed[what] = differing_keys(recipe_inputs(reference), recipe_inputs(other))[1:]
    assert changed == {
        "progressive": ["train.shrinking"],
        "nested": ["adapter.scaling", "train.draw"],
        "nested-by-rank": ["train.draw"],
        "sandwich": ["train.steps", "train.largest_first", "train.sandwich"],
    }


def test_a_model_that_is_adapted_first_is_adapted_as_the_baseline_is() -> None:
    cells = all_cells()
    baseline = Recipe.model_validate(cells[f"smollm2-poker-0-0-{BASELINE}"].recipe())
    arms = [arm for arm in ARMS.values() if arm.adapted]
    assert len(arms) > 1
    for arm in arms:
        ratio = "0" if arm.sparsity is None else "0.7"
        adapting = adapting_recipe(Recipe.model_validate(cells[f"smollm2-poker-0-{ratio}-{arm.name}"].recipe()))
        assert adapting is not None
        assert adapting.model == baseline.model
        # Behind their names.
        first, second = (deciding_inputs(recipe_inputs(recipe)) for recipe in (adapting, baseline))
        assert differing_keys(first, second) == []
    assert adapting_recipe(Recipe.model_validate(cells["smollm2-poker-0-0.7-elastic"].recipe())) is None


def test_a_dense_arm_has_one_cell_for_all_ratios_and_an_encoder_none_of_a_generated_answer() -> None:
    names = list(all_cells())
    assert sum(name.startswith("smollm2-sarcasm-0") and name.endswith("dense") for name in names) == 1
    assert any(name.startswith("smollm2-stories") for name in names)
    assert not any(name.startswith("minilm-stories") for name in names)


def test_a_seed_is_finished_before_the_next_begins() -> None:
    seeds = [cell.seed for cell in all_cells(seeds=(4, 1)).values() if cell.model.name == "smollm2"]
    assert seeds == sorted(seeds, reverse=True)


def test_cells_share_a_run_where_they_train_on_the_same_frozen_model() -> None:
    cells = all_cells(seeds=(0, 1))

    def run_of(name: str) -> str:
        return cells[name].run_name

    assert run_of("smollm2-sarcasm-0-0.5-wanda") == run_of("smollm2-sarcasm-0-0.5-wanda-elastic")
    assert run_of("smollm2-sarcasm-0-0.5-adapted") == run_of("smollm2-sarcasm-0-0.5-adapted-elastic")
    others = (
        "0-0.7-wanda",
        "0-2of4-wanda",
        "0-0.5-magnitude",
        "1-0.5-wanda",
        "0-0-dense",
        "0-0.5-healed",
        "0-0.5-adapted",
    )
    assert len({run_of(f"smollm2-sarcasm-{other}") for other in ("0-0.5-wanda", *others)}) == len(others) + 1


def test_shares_that_layers_do_not_have_alike_are_no_pattern() -> None:
    names = [name for name in all_cells() if name.startswith("smollm2-sarcasm")]
    for arm in ("owl", "searched", "owl-healed"):
        assert f"smollm2-sarcasm-0-0.7-{arm}" in names
        assert f"smollm2-sarcasm-0-2of4-{arm}" not in names
    assert "smollm2-sarcasm-0-2of4-swapped" in names


def test_the_arm_of_the_shipped_recipe_differs_from_it_as_it_says() -> None:
    shipped, cell = shipped_recipe("smollm2-shears"), all_cells()["smollm2-sarcasm-0-0.5-adapted-elastic"].recipe()
    ours = dict(cell["sparsity"])
    text = ours.pop("calibration")
    assert {key: text.pop(key) for key in ("samples", "seq_len")} == shipped["sparsity"]["calibration"]
    assert text["task_rows"] is True
    assert {**ours, "calibration": shipped["sparsity"]["calibration"]} == {
        **shipped["sparsity"],
        "pattern": "unstructured",
    }
    assert (len(shipped["adapter"]["groups"]), len(cell["adapter"]["groups"])) == (3, 4)
    same = ("r", "lora_alpha", "scaling", "masked")
    assert [shipped["adapter"][key] for key in same] == [cell["adapter"][key] for key in same]
    assert (shipped["train"], shipped["model"]) == (cell["train"], cell["model"])


@pytest.mark.parametrize("text", ["0", "1", "1.5", "half", "3:4", "unstructured"])
def test_a_ratio_is_a_share_or_a_pattern_that_has_one(text: str) -> None:
    with pytest.raises(ValueError, match=text):
        parse_ratio(text)


def finished(cell: Cell) -> CellDocument:
    ratio = cell.ratio.text if cell.ratio else ""
    recipe = cell.recipe()
    return cell_document(cell.model.name, cell.arm.name, cell.task.name, ratio=ratio, seed=cell.seed, recipe=recipe)


def finish(cell: Cell, output: Path) -> CellDocument:
    document = finished(cell)
    path = cell_file(output, cell.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_document(path, document)
    return document


def test_a_finished_cell_is_not_run_again(tmp_path: Path) -> None:
    cells = all_cells()
    first, *others = cells.values()
    finish(first, tmp_path)
    assert unfinished(cells, tmp_path) == others


def test_a_cell_of_another_recipe_is_refused_before_anything_runs(tmp_path: Path) -> None:
    cells = all_cells()
    first = next(iter(cells.values()))
    document = finish(first, tmp_path)
    other = {**document.recipe, "train": {**document.recipe["train"], "steps": 3}}
    write_document(cell_file(tmp_path, first.name), document.model_copy(update={"recipe": other}))
    with pytest.raises(UsageError, match="another recipe"):
        unfinished(cells, tmp_path)


def test_a_report_refuses_every_cell_of_another_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = all_cells()
    finish(cells["smollm2-sarcasm-0-0-dense"], tmp_path)
    trial = finish(replace(cells["smollm2-poker-0-2of4-wanda"], steps=3, test_rows=20), tmp_path)
    command = ["--output", str(tmp_path), "--report"]
    assert main(command) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "another recipe" in said
    assert f"{trial.recipe['name']}.json" in said
    assert not (tmp_path / "report.md").exists()
    cell_file(tmp_path, "smollm2-sarcasm-0-0-dense").unlink()
    assert main([*command, "--steps", "3", "--test-rows", "20"]) == 0


def test_cells_that_nobody_asked_for_are_of_one_recipe_too(tmp_path: Path) -> None:
    cells = all_cells()
    finish(cells["smollm2-poker-0-0-dense"], tmp_path)
    finish(replace(cells["smollm2-sarcasm-0-0-dense"], steps=3), tmp_path)
    asked = ["--models", "smollm2", "--tasks", "poker", "--methods", "dense", "--seeds", "0"]
    assert main(["--output", str(tmp_path), *asked]) == 2


def test_one_failure_does_not_end_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = {name: cell for name, cell in all_cells().items() if name.startswith("smollm2-sarcasm-0-0.5-")}
    bad = "smollm2-sarcasm-0-0.5-wanda"

    def stand_in(cell: Cell, run: Run, **_: object) -> CellDocument:
        run.path.mkdir(parents=True, exist_ok=True)
        if cell.name == bad:
            raise RecipeInvalid("no such thing")
        return finished(cell)

    monkeypatch.setattr(carry_out, "carry_out", stand_in)
    failed = carry_out.carry_out_all(cells.values(), tmp_path, keep=False)
    assert list(failed) == [bad]
    assert [cell.name for cell in unfinished(cells, tmp_path)] == [bad]
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--methods", "dense,wandda", "wandda is none of"),
        ("--ratios", "0.5,2", "2 is not between"),
        ("--seeds", "a", "a"),
    ],
)
def test_the_command_refuses_what_there_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, said: str
) -> None:
    with pytest.raises(SystemExit) as error:
        main(["--output", str(tmp_path / "out"), option, value])
    assert error.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_help_and_report_import_no_heavy_library() -> None:
    code = "import sys, benchmarks.quality.__main__; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
