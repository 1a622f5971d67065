"""The page about extensions, carried out: every example as a package from outside, through the real commands."""

from __future__ import annotations

import os
import shutil
import sys
import tomllib
from pathlib import Path

import pytest

from shearling.registry.export_formats import EXPORT_FORMATS
from shearling.registry.number_formats import NUMBER_FORMATS
from shearling.registry.pruning_methods import PRUNING_METHODS
from shearling.registry.runtimes import RUNTIMES
from shearling.registry.search_algorithms import SEARCH_ALGORITHMS
from tests.support.documents import ROOT, read_blocks
from tests.support.shown_commands import run_shown
from tests.support.tiny_runs import write_tiny_recipe

PAGE = ROOT / "docs" / "extending.md"
TABLES = (PRUNING_METHODS, SEARCH_ALGORITHMS, EXPORT_FORMATS, NUMBER_FORMATS, RUNTIMES)
MOST_LINES = 60


def install_page(site: Path) -> None:
    """The page's files in one distribution, as an installer would leave it."""
    groups: dict[str, dict[str, str]] = {}
    for block in read_blocks(PAGE):
        if block.language == "python":
            (site / block.file).write_text(block.text, encoding="utf-8")
        if block.language == "toml":
            groups |= tomllib.loads(block.text)["project"]["entry-points"]
    metadata = site / "page-0.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: page\nVersion: 0.1\n", encoding="utf-8")
    lines = [
        line
        for group, points in groups.items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in points.items()))
    ]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert set(groups) == {table.group for table in TABLES}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where every command of the page was carried out, and what each printed."""
    directory, site = tmp_path_factory.mktemp("page"), tmp_path_factory.mktemp("site")
    install_page(site)
    made = write_tiny_recipe(directory / "given", sparsity={"method": "column_share"})
    for file in made.parent.iterdir():
        shutil.move(file, directory / file.name)
    paths = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    scripts = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": paths, "PATH": scripts}
    printed = {}
    for block in read_blocks(PAGE):
        if block.language == "sh":
            done = run_shown(block.text, directory=directory, environment=environment)
            assert done.returncode == 0, f"{block.heading}:\n{done.stdout}\n{done.stderr[-3000:]}"
            printed[block.heading] = done.stdout
    return directory, printed


def test_every_kind_of_member_has_a_short_complete_example():
    examples = {block.heading: block for block in read_blocks(PAGE) if block.language == "python"}
    assert len(examples) == len(TABLES)
    for heading, block in examples.items():
        assert block.text.count("\n") < MOST_LINES, heading
        assert "ENTRY = " in block.text


@pytest.mark.slow
def test_the_commands_of_the_page_use_its_members(place):
    directory, printed = place
    assert "column_share" in (directory / "runs/mine/sparse/manifest.json").read_text(encoding="utf-8")
    assert "parzen" in (directory / "runs/mine/search/best.json").read_text(encoding="utf-8")
    assert (directory / "runs/mine/archive/archive/weights.npz").is_file()
    assert '"coarse"' in (directory / "runs/mine/coarse/report.json").read_text(encoding="utf-8")
    assert "8 11 14 17" in printed["A runtime"]
