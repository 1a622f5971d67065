"""The tutorial, carried out as it stands, with a tiny model in the place of the reader's."""

from __future__ import annotations

import itertools
import os
import re
import sys
from pathlib import Path

import pytest

from tests.support.documents import ROOT, commands, read_blocks
from tests.support.shown_commands import run_shown
from tests.support.tiny_models import save_tiny

PAGE = ROOT / "docs" / "tutorial.md"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with the model that the reader brings, after every block of the page."""
    directory = tmp_path_factory.mktemp("tutorial")
    save_tiny("llama_tied_gqa", directory / "my-model")
    # As in an activated environment.
    scripts = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    for block in read_blocks(PAGE):
        if block.file is not None:
            (directory / block.file).write_text(block.text, encoding="utf-8")
        if block.language == "sh":
            done = run_shown(block.text, directory=directory, environment=environment)
            assert done.returncode == 0, f"{block.heading}: {block.text}\n{done.stdout}\n{done.stderr[-3000:]}"
    return directory


@pytest.mark.slow
def test_every_command_of_the_page_works_and_leaves_what_it_names(place):
    text = PAGE.read_text(encoding="utf-8")
    named = set(re.findall(r"`(runs/[\w./-]+)`", text))
    assert {"runs/tickets/search/best.json", "runs/tickets/export/report.html"} <= named
    for name in named:
        assert (place / name).exists(), name


def test_every_stage_has_its_command():
    shown = [command for block in read_blocks(PAGE) if block.language == "sh" for command in commands(block)]
    programs = {" ".join(command.split()[:3]) for command in shown if command.startswith("python -m")}
    assert programs >= {"python -m train", "python -m search", "python -m export", "python -m serve"}
    assert any(command.startswith("shearling evaluate") for command in shown)


def test_every_output_of_the_page_follows_its_command():
    blocks = read_blocks(PAGE)
    for before, block in itertools.pairwise(blocks):
        if block.language == "text":
            assert before.language == "sh", block.text
    assert sum(block.language == "text" for block in blocks) >= 6
