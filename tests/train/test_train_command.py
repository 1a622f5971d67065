"""`python -m train` as a program: exit codes, one JSON object, help at once."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.stage_commands import run_stage
from tests.support.tiny_runs import tiny_recipe, write_tiny_recipe
from train.stage import run_recipe


def run_train(*arguments: str | Path, code: int) -> tuple[str, str]:
    done = run_stage("train", *arguments, code=code)
    return done.stdout, done.stderr


def test_a_recipe_becomes_a_run_and_is_not_repeated(tmp_path):
    recipe = write_tiny_recipe(tmp_path)
    out, err = run_train("--recipe", recipe, "--output", tmp_path / "run", "--json", code=0)
    summary = json.loads(out)
    assert summary["status"] == "ok"
    assert set(summary["artefacts"]) == {"task", "base", "sparse", "super_adapter"}
    assert summary["artefacts"]["sparse"]["sparsity"]["achieved_scope"] == 0.5
    assert Path(summary["artefacts"]["super_adapter"]["path"], "manifest.json").is_file()
    assert "Warning" not in err
    assert "Traceback" not in err
    out, err = run_train("--recipe", recipe, "--output", tmp_path / "run", "--json", code=2)
    assert json.loads(out)["error"] == "OutputExists"
    assert "--force" in json.loads(out)["remedy"]


def test_the_screen_names_the_next_step(tmp_path):
    run_recipe(tiny_recipe(tmp_path), tmp_path / "run")
    from rich.console import Console

    from shearling.artefact import open_artefact
    from train.screen import summarise

    made = {
        kind: open_artefact(tmp_path / "run" / kind, kind=kind) for kind in ("task", "base", "sparse", "super_adapter")
    }
    console = Console(record=True, width=160, file=io.StringIO())
    console.print(summarise(tmp_path / "run", made).screen)
    text = console.export_text()
    assert "python -m search --run" in text
    assert "50.00% of the pruned layers" in text
    console.file.close()


def test_an_output_that_is_a_file_is_refused_at_once(tmp_path):
    recipe = write_tiny_recipe(tmp_path)
    for output in (recipe, recipe / "run"):
        _, err = run_train("--recipe", recipe, "--output", output, code=2)
        assert f"{output}: no directory can be made here" in err
        assert "expected" not in err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "tiny"', "name = ", "not TOML"),
        ("learning_rate", "learning_rat", "did you mean 'learning_rate'"),
        ("masked = true", "masked = 1.5", "adapter.masked"),
        ("ratio = 0.5", "ratio = 1.0", "sparsity.ratio"),
    ],
)
def test_bad_recipes_exit_with_2(old, new, message, tmp_path):
    recipe = write_tiny_recipe(tmp_path)
    recipe.write_text(recipe.read_text().replace(old, new, 1))
    _, err = run_train("--recipe", recipe, "--output", tmp_path / "run", code=2)
    assert message in err
    assert not (tmp_path / "run").exists()


def test_missing_recipe_exits_with_3_and_missing_option_with_2(tmp_path):
    _, err = run_train("--recipe", tmp_path / "none.toml", "--output", tmp_path / "run", code=3)
    assert "no such recipe" in err
    _, err = run_train("--output", tmp_path / "run", code=2)
    assert "--recipe" in err


def test_help_does_not_import_torch():
    code = (
        "import sys, train.__main__; sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'peft')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
    out, _ = run_train("--help", code=0)
    assert "--recipe" in out


def test_a_dry_run_shows_what_every_part_would_take_and_makes_nothing(tmp_path):
    recipe = write_tiny_recipe(tmp_path, adaptation={})
    command = ("--recipe", recipe, "--output", tmp_path / "run", "--dry-run")
    shown = json.loads(run_train(*command, "--json", code=0)[0])
    assert set(shown["parts"]) == {"base", "lora", "adapted", "sparse", "super_adapter"}
    assert all(part["memory_bytes"] > 2**28 for part in shown["parts"].values())
    assert shown["available"]["disk_bytes"] > 0
    screen = run_train(*command, code=0)[0]
    assert "there is" in screen
    assert max(map(len, screen.replace(str(tmp_path), "").splitlines())) <= 80
    weights = tmp_path / "source" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert json.loads(run_train(*command, "--json", code=3)[0])["error"] == "ArtefactCorrupt"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("dry_run", [(), ("--dry-run",)])
def test_a_dry_run_refuses_what_the_run_would_refuse(tmp_path: Path, dry_run: tuple[str, ...]) -> None:
    late = write_tiny_recipe(tmp_path / "late", train={"steps": 4, "eval_steps": 5, "patience": 1})
    untaught = write_tiny_recipe(
        tmp_path / "untaught", train={"teacher": {"path": str(tmp_path / "gone"), "answer": 1.0}}
    )
    for recipe, code, error in ((late, 2, "RecipeInvalid"), (untaught, 3, "ArtefactMissing")):
        command = ("--recipe", recipe, "--output", tmp_path / "run", *dry_run, "--json")
        assert json.loads(run_train(*command, code=code)[0])["error"] == error
    assert not (tmp_path / "run").exists()
