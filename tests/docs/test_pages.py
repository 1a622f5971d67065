"""The README's commands exist with the options it shows, its links lead somewhere, and every --help is instant."""

from __future__ import annotations

import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command_parsing import parse_command

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
STAGES = ("train", "search", "export", "serve", "shearling")
HELP_LIMIT_S = 0.5
"""What a person takes for instant."""


def _commands() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    # The shell's own quoting of a line break is not Python's.
    return [line.partition("  #")[0].replace("$'", "'").strip() for line in lines]


def _split(command: str) -> tuple[str, list[str]] | None:
    words = shlex.split(command.removeprefix(".venv/bin/"))
    if words[:2] == ["python", "-m"]:
        return words[2], words[3:]
    return (words[0], words[1:]) if words[0] == "shearling" else None


RUNNABLE = [command for command in _commands() if _split(command) is not None]


def test_readme_shows_every_stage():
    shown = {_split(command)[0] for command in RUNNABLE}
    assert shown >= set(STAGES)
    assert shown <= set(STAGES)


def _module(program: str) -> str:
    return f"{program}.__main__" if program in STAGES else program


@pytest.mark.parametrize("command", RUNNABLE)
def test_commands_parse(command):
    program, arguments = _split(command)
    parse_command(_module(program), program, arguments)


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for document in DOCUMENTS:
        for target in re.findall(r"^ {4}make ([a-z-]+)", document.read_text(encoding="utf-8"), flags=re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), f"{document.name} shows make {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    for link in re.findall(r"\]\(([^)]+)\)", document.read_text(encoding="utf-8")):
        if not link.startswith("https://"):
            assert (document.parent / link.partition("#")[0]).exists(), link


@pytest.mark.alone
@pytest.mark.parametrize("program", STAGES)
def test_help_is_instant(program):
    spent_s: list[float] = []
    # Other work slows a processor that it shares down: what is measured is more than the command needs, never less.
    while len(spent_s) < 10 and (not spent_s or spent_s[-1] >= HELP_LIMIT_S):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-m", program, "--help"], capture_output=True, text=True, cwd=ROOT, check=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # Time of the processor, not of the clock: other work on the machine does not count.
        spent_s.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert "Usage" in done.stdout
    assert min(spent_s) < HELP_LIMIT_S


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["serve", "bench"], "the first is the reference"),
        (["shearling", "inspect"], "An artefact, such as"),
    ],
)
def test_help_explains_arguments(command, words):
    done = subprocess.run([sys.executable, "-m", *command, "--help"], capture_output=True, text=True, check=True)
    assert words in " ".join(done.stdout.split())


@pytest.mark.parametrize("program", STAGES)
def test_importing_a_command_imports_no_heavy_library(program):
    heavy = ("torch", "transformers", "openvino", "nncf", "onnxruntime", "lm_eval", "pymoo", "datasets", "matplotlib")
    script = f"import sys, {_module(program)}; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_prose_fits_a_hundred_columns(document):
    inside, wide = False, []
    for line in document.read_text(encoding="utf-8").splitlines():
        inside ^= line.startswith("```")
        if not inside and not line.startswith(("    ", "|", "```")) and len(line) > 100:
            wide.append(line)
    assert wide == []


def test_nothing_is_installed_by_a_name_that_no_index_has():
    """Whoever took that name would run code on the machines of those who read it."""
    packages = ("shearling", "train", "search", "export", "serve", "benchmarks", "packages")
    sources = [file for package in packages for file in (ROOT / package).rglob("*.py")]
    pages = [*DOCUMENTS, ROOT / "packages" / "runtime" / "README.md", *sources]
    found = [line for page in pages for line in page.read_text(encoding="utf-8").splitlines() if "pip install" in line]
    assert len(found) > 20
    assert [line for line in found if re.search(r"pip install.*['\" ]shearling(-runtime\b|\[|['\" ]|$)", line)] == []


def _tables(text: str) -> list[dict[str, str]]:
    """Rows of the tables of a page, each by the words of its header."""
    rows, header = [], []
    for line in text.splitlines():
        cells = [cell.strip(" *") for cell in line.split("|")[1:-1]] if line.startswith("|") else []
        if not cells:
            header = []
        elif not header:
            header = cells
        elif not set(cells[0]) <= set("-:"):
            rows.append(dict(zip(header, cells, strict=True)))
    return rows


def test_the_readme_shows_the_chart_of_the_results():
    """A chart of another machine has come into its place."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    chart = (ROOT / "docs" / "results.md").read_text(encoding="utf-8").split("\n## Accuracy against speed\n")[1]
    shown = [row for row in _tables(readme) if "tokens/s" in row]
    measured = [row for row in _tables(chart.split("\n### ")[0]) if "tokens/s" in row]
    accuracy = "accuracy on 1,000 unseen rows, % (95 %)"
    found = {(row["MiB"], row["accuracy, % (95 %)"], row["tokens/s"]) for row in measured}
    assert len(shown) > 5
    assert {(row["MiB"], row[accuracy], row["tokens/s"]) for row in shown} <= found


def test_the_readme_is_read_in_one_sitting():
    assert (ROOT / "README.md").read_text(encoding="utf-8").count("\n") <= 120
