"""The plan of the house: what no linter and no import contract checks."""

from __future__ import annotations

import ast
import re
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from shearling.registry.tables import TABLES

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("shearling", "train", "search", "export", "serve")
SOURCES = sorted(file for place in (*PACKAGES, "packages") for file in (ROOT / place).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
KERNELS = sorted([*(ROOT / "shearling/kernel/cpp").iterdir(), *(ROOT / "tests").rglob("*.cpp")])
MOST_LINES = 600
WIDEST = 120
DRAWERS = {"utils", "util", "common", "helpers", "helper", "misc"}
"""A thing that has no room shows that a room is missing."""

SHARED_NAMES: dict[str, str] = {
    "Estimate": "of memory and disk in shearling.resources, of a measured figure in the artefacts of serve.bench",
}
"""Class names that stand for several things, each with the reason."""


def _shown(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def _imports(file: Path) -> list[str]:
    modules = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            modules.append(node.module or "")
        elif isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
    return modules


@pytest.mark.parametrize("file", TESTS, ids=_shown)
def test_no_test_imports_another(file):
    of_tests = [module for module in _imports(file) if module == "tests" or module.startswith("tests.")]
    assert [module for module in of_tests if not module.startswith("tests.support.")] == []


def test_a_class_name_means_one_thing():
    places = defaultdict(list)
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(_shown(file))
    shared = {name: found for name, found in places.items() if len(found) > 1}
    assert {name: found for name, found in shared.items() if name not in SHARED_NAMES} == {}
    assert SHARED_NAMES.keys() <= shared.keys(), "an exception that is needed no longer"


@pytest.mark.parametrize("distribution", ["onnxruntime", "onnxruntime-genai"])
def test_everything_that_names_a_range_of_releases_names_the_same(distribution):
    """Extras, remedies, programs that are written beside a model, and pages; for CPUs and for GPUs."""
    range_ = re.compile(rf"\b{distribution}(?:-gpu|-cuda)?(>=[\d.]+,<[\d.]+)")
    named = defaultdict(list)
    for file in [
        *SOURCES,
        *ROOT.glob("pyproject.toml"),
        *ROOT.glob("packages/*/pyproject.toml"),
        *ROOT.glob("docs/*.md"),
    ]:
        for found in range_.findall(file.read_text(encoding="utf-8")):
            named[found].append(_shown(file))
    assert len(named) == 1, dict(named)
    assert sum(map(len, named.values())) > 3


@pytest.mark.parametrize("room", [file for file in SOURCES if file.name == "__init__.py"], ids=_shown)
def test_a_room_says_what_it_is_for(room):
    assert ast.get_docstring(ast.parse(room.read_text(encoding="utf-8")))


def test_there_are_no_drawers():
    assert [_shown(file) for file in SOURCES if DRAWERS & {part.removesuffix(".py") for part in file.parts}] == []


def test_files_end_before_they_tire():
    lengths = {_shown(file): len(file.read_text(encoding="utf-8").splitlines()) for file in SOURCES}
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}


def test_lines_of_the_kernels_are_as_wide_as_those_of_python():
    lines = {_shown(file): file.read_text(encoding="utf-8").splitlines() for file in KERNELS}
    assert "shearling/kernel/cpp/linear.cpp" in lines
    wide = [f"{name}:{at}" for name, text in lines.items() for at, line in enumerate(text, 1) if len(line) > WIDEST]
    assert wide == []


def _marks_alone(node: ast.AST) -> bool:
    """Whether it says that a test runs alone: by the mark itself, or by its name where marks are given by theirs."""
    if isinstance(node, ast.Attribute):
        return node.attr == "alone" and ast.unparse(node.value).split(".")[-1] == "mark"
    if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in {"add_marker", "getattr"}:
        return any(isinstance(given, ast.Constant) and given.value == "alone" for given in node.args)
    return False


def test_make_finds_every_file_with_tests_that_run_alone():
    """The second run of the tests sees no other file: a mark that comes from a helper would leave its tests out."""
    done = subprocess.run(
        ["make", "--silent", "--no-print-directory", "--eval", "shown: ; @echo $(ALONE)", "shown"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    trees = {_shown(file): ast.parse(file.read_text(encoding="utf-8")) for file in TESTS}
    marked = {name for name, tree in trees.items() if any(map(_marks_alone, ast.walk(tree)))}
    assert marked
    assert marked - set(done.stdout.split()) == set()


@pytest.mark.parametrize("title", ["Pruning methods", "Search algorithms", "Runtimes"])
def test_a_member_knows_the_protocol_and_no_other_member(title):
    modules = {entry.implementation.partition(":")[0] for entry in TABLES[title]}
    for module in modules:
        file = ROOT / (module.replace(".", "/") + ".py")
        assert not (modules - {module}) & set(_imports(file)), module
