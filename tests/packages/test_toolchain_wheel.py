"""The wheel of the toolchain: everything that it needs is in it, from whatever directory it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
import venv
import zipfile
from pathlib import Path

import build_wheels
import pytest

from shearling.virtual_environment import make_environment
from tests.support.documents import ROOT
from tests.support.environments import environment_seeing_ours
from tests.support.once_per_run import once_per_run

STAGES = ("train", "search", "export", "serve")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    (wheel,) = once_per_run(tmp_path_factory, "toolchain-wheel", build_wheels.build_toolchain).glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """An environment with the wheel; what it depends on is that of the tests, without what is installed editable."""
    directory = tmp_path_factory.mktemp("environment") / "installed"
    venv.create(directory, with_pip=False)
    (packages,) = directory.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    return directory


@pytest.fixture
def elsewhere(tmp_path) -> Path:
    """A directory of somebody else, with packages of the names of our stages."""
    for stage in STAGES:
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "__init__.py").write_text("raise SystemExit('this is another package')")
    return tmp_path


def run(environment: Path, *arguments: str, directory: Path) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "SHEARLING_CACHE")}
    python = environment / "bin" / "python"
    return subprocess.run(
        [str(python), *arguments],
        env=variables,
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def as_script(entry: str) -> tuple[str, str]:
    """Arguments that do what the console script of an entry point does: its directory comes first, not ours."""
    module, _, function = entry.partition(":")
    return "-Pc", f"import sys; from {module} import {function}; sys.exit({function}())"


def entry_points(wheel: Path) -> dict[str, str]:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("/entry_points.txt")]
        lines = archive.read(name).decode().splitlines()
    return dict(line.split(" = ") for line in lines if " = " in line)


def test_it_holds_the_data_and_no_sources_of_libraries(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    data = [name for name in tracked if name.startswith((*STAGES, "shearling/")) and name.endswith(".jinja")]
    assert len(data) >= 3
    assert set(data) <= set(names)
    assert {Path(name).name for name in names if "/recipes/" in name} == {
        path.name for path in (ROOT / "recipes").iterdir()
    }
    assert not [name for name in names if name.endswith((".cpp", ".hpp", ".inc")) or name.startswith("tests/")]


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_answers_from_any_directory(wheel, installed, elsewhere, tmp_path_factory, stage):
    empty = tmp_path_factory.mktemp("empty")
    done = run(installed, "-m", stage, "--help", directory=empty)
    assert done.returncode == 0, done.stderr
    script = run(installed, *as_script(entry_points(wheel)[f"shearling-{stage}"]), "--help", directory=elsewhere)
    assert script.returncode == 0, script.stderr
    assert "Usage: shearling-" in script.stdout


def test_a_stage_refuses_what_another_project_calls_so(installed, tmp_path):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "__init__.py").write_text("raise SystemExit('this is another package')")
    done = run(installed, "-m", "serve", "generate", ".", "--prompt", "x", directory=tmp_path)
    assert done.returncode == 4
    assert "the package 'export' would be imported from" in done.stderr
    assert "Run from another directory" in done.stderr


def test_where_another_package_is_called_so_the_safe_path_runs_ours(installed, elsewhere):
    """`python -m` takes what stands in the working directory, and nothing of ours runs that could refuse."""
    other = run(installed, "-m", "export", "--help", directory=elsewhere)
    assert (other.returncode, other.stderr.strip()) == (1, "this is another package")
    safe = run(installed, "-P", "-m", "export", "--help", directory=elsewhere)
    assert safe.returncode == 0, safe.stderr
    assert "Usage: python -m export" in safe.stdout


def test_the_doctor_says_which_names_are_taken_here(installed, wheel, tmp_path):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "__init__.py").touch()
    (tmp_path / "serve.py").touch()
    (tmp_path / "train").mkdir()  # no package: Python passes it over
    doctor = run(installed, *as_script(entry_points(wheel)["shearling"]), "doctor", "--json", directory=tmp_path)
    assert doctor.returncode == 0, doctor.stderr
    taken = [finding for finding in json.loads(doctor.stdout)["findings"] if "calls so" in finding]
    assert taken == [
        f"`python -m {stage}` runs what {tmp_path} calls so: use `shearling-{stage}`, or `python -P -m {stage}`"
        for stage in ("export", "serve")
    ]


def test_tables_schema_and_demo_find_their_files(wheel, installed, elsewhere):
    script = as_script(entry_points(wheel)["shearling"])
    schema = run(installed, *script, "schema", directory=elsewhere)
    assert schema.stdout == (ROOT / "recipes" / "recipe.schema.json").read_text(encoding="utf-8")
    members = run(installed, *script, "members", "--json", directory=elsewhere)
    assert json.loads(members.stdout)["status"] == "ok"
    question = "from shearling.demo.shears.layout import SHEARS_RECIPE; print(SHEARS_RECIPE, SHEARS_RECIPE.is_file())"
    found = run(installed, "-Pc", question, directory=elsewhere).stdout.split()
    assert found[0].startswith(str(installed))
    assert found[1] == "True"


@pytest.fixture(scope="module")
def guard(wheel, tmp_path_factory) -> Path:
    """An environment with the guard's extra, as pip installs it, and nothing of the toolchain."""
    directory = tmp_path_factory.mktemp("guard") / "environment"
    make_environment(directory, [f"{wheel}[guard]"])
    return directory


@pytest.mark.slow
def test_the_guard_alone_brings_no_torch_and_checks_a_model(guard, tmp_path):
    import openvino

    heavy = ("torch", "transformers", "openvino", "onnxruntime")
    question = f"import importlib.util; print([name for name in {heavy} if importlib.util.find_spec(name)])"
    assert run(guard, "-c", question, directory=tmp_path).stdout.strip() == "[]"
    # Prompts of a trace become tokens without the runtime.
    assert run(guard, "-c", "import tokenizers", directory=tmp_path).returncode == 0
    operators = openvino.opset13
    ids = operators.parameter([-1, -1], dtype=openvino.Type.i64, name="input_ids")
    table = operators.constant([[float((3 * row + 1) % 300 == column) for column in range(300)] for row in range(300)])
    scores = operators.gather(table, ids, operators.constant(0))
    openvino.save_model(openvino.Model([scores], [ids], "bigrams"), tmp_path / "mine.xml")
    side = f"{tmp_path / 'mine.xml'}@environment={environment_seeing_ours(tmp_path / 'runtimes')}"
    # What is checked is that there is a verdict; which one, on a machine that tests, is chance.
    done = run(guard, "-m", "serve", "check", side, "--against", side, "--budget", "4", directory=tmp_path)
    assert done.returncode in (0, 1), done.stderr
    assert done.returncode == 0 or "latency" in done.stderr


@pytest.mark.slow
def test_a_stage_without_its_extra_says_what_to_install(guard, tmp_path):
    recipe = ROOT / "recipes" / "smollm2-shears.toml"
    done = run(guard, "-m", "train", "--recipe", str(recipe), "--output", "run", directory=tmp_path)
    assert done.returncode == 4, done.stderr
    assert "pip install -e '.[cpu]'" in done.stderr


def test_kernels_without_their_package_are_an_environment_fault(installed, elsewhere):
    question = """
import sys
from shearling.errors import PackageMissing
from shearling.kernel.build import build_library
try:
    build_library()
except PackageMissing as error:
    print(error)
"""
    done = run(installed, "-Pc", question, directory=elsewhere)
    assert "Install shearling_runtime-*.whl" in done.stdout, done.stderr
