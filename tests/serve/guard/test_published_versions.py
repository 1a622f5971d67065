"""An upgrade as users meet it: two releases of OpenVINO from the package index, a model of another exporter.

Both environments hold the same numpy; the newer release is the one that these tests run with.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from shearling.virtual_environment import make_environment
from tests.support.latency_models import write_layers
from tests.support.serve_command import serve

pytestmark = [pytest.mark.alone, pytest.mark.slow]

OLD = "2026.3.1"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As optimum exports it."""
    return write_layers(tmp_path_factory.mktemp("upgrade") / "model", 4)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("environments") / f"openvino-{OLD}"
    make_environment(directory, [f"openvino=={OLD}", f"numpy=={importlib.metadata.version('numpy')}"])
    return directory


def test_two_releases_are_compared_with_a_verdict(model: Path, old: Path, tmp_path: Path) -> None:
    sides = (f"{model}@environment={sys.prefix}", "--against", f"{model}@environment={old}")
    # A wide limit: the machine of the tests is not quiet, and which release is faster is not what is tested.
    files = ("--junit", tmp_path / "junit.xml", "--summary", tmp_path / "summary.md")
    limits = ("--max-ratio", "2", "--max-memory-ratio", "2", "--precision", "fp32")
    done = serve("check", *sides, *limits, *files, "--json")
    assert done.returncode == 0, done.stderr
    verdict = json.loads(done.stdout)
    assert verdict["outcome"] == "pass"
    assert set(verdict["outcomes"]) == {"ttft_s", "tpot_s", "peak_memory_bytes", "tokens"}
    assert verdict["tokens"]["differing"] == 0
    (suite,) = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert (suite.attrib["tests"], suite.attrib["failures"]) == ("4", "0")
    text = (tmp_path / "summary.md").read_text()
    assert f"OpenVINO {OLD}" in text
    assert f"OpenVINO {importlib.metadata.version('openvino')}" in text
