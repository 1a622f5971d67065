"""The first slower version: found among invented ones, and among packages that pip really installs."""

from __future__ import annotations

import base64
import hashlib
import json
import sysconfig
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks.gguf_writer import write_gguf
from serve.guard.bisection import Bisection, Installation, _first_slow, parse_versions, require_none_slower
from shearling.errors import CheckFailed, PackageMissing, UsageError
from shearling.virtual_environment import make_environment
from tests.support.serve_command import serve
from tests.support.stand_in_llama import stand_in
from tests.support.tiny_models import llama_tied_gqa, tiny_tokenizer

VERSIONS = ("0.1", "0.2", "0.3", "0.4")


def write_wheel(directory: Path, name: str, version: str, files: Mapping[str, str]) -> Path:
    """A wheel of a few texts."""
    base = f"{name.replace('-', '_')}-{version}"
    content = {
        **files,
        f"{base}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{base}.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = []
    for path, text in content.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={digest},{len(text.encode())}")
    content[f"{base}.dist-info/RECORD"] = "\n".join([*lines, f"{base}.dist-info/RECORD,,"]) + "\n"
    path = directory / f"{base}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name_inside, text in content.items():
            archive.writestr(name_inside, text)
    return path


@pytest.mark.parametrize("count", range(2, 9))
def test_every_place_of_the_first_slower_version_is_found_in_few_checks(count: int) -> None:
    for first in range(1, count):
        asked: list[int] = []

        def measure(place: int, first: int = first, asked: list[int] = asked) -> str:
            asked.append(place)
            return "regression" if place >= first else "pass"

        assert _first_slow(count, measure) == first
        assert len(asked) == len(set(asked)) <= 1 + (count - 1).bit_length()
    assert _first_slow(count, lambda place: "pass") is None


def test_what_is_inconclusive_names_nothing() -> None:
    outcomes = {3: "regression", 1: "inconclusive"}
    assert _first_slow(4, outcomes.__getitem__) is None
    found = Bisection(
        package="openvino",
        versions=VERSIONS,
        outcomes={"0.4": "regression", "0.2": "inconclusive"},
        checks=(),
        first_slower=None,
        last_good=None,
    )
    with pytest.raises(CheckFailed, match=r"inconclusive for openvino 0\.2"):
        require_none_slower(found)


@pytest.mark.parametrize("text", ["2026.4.1", "1,1", "1,,2", "1,--pre", "1,2 3", "1,@evil"])
def test_lists_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="cannot read the versions"):
        parse_versions(text)


def test_requirements_name_the_version() -> None:
    installation = Installation("openvino", ("numpy==2.1.0", "openvino-genai=={version}.0"))
    assert installation.requirements("2026.4.1") == ["openvino==2026.4.1", "numpy==2.1.0", "openvino-genai==2026.4.1.0"]


def test_an_environment_that_cannot_be_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(PackageMissing, match="cannot install no-such-package==1"):
        make_environment(tmp_path / "environment", ["no-such-package==1"])
    assert not (tmp_path / "environment").exists()
    with pytest.raises(PackageMissing, match="cannot make it: No such file"):
        make_environment(tmp_path / "environment", [], python=tmp_path / "absent")


@pytest.mark.slow
@pytest.mark.alone
def test_the_first_slower_release_is_named(tmp_path: Path) -> None:
    model = write_gguf(tmp_path / "tiny.gguf", llama_tied_gqa(), tiny_tokenizer())
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    for version in VERSIONS:
        source = stand_in(step_s=0.02 if version >= "0.3" else 0.003)
        write_wheel(shelf, "llama-cpp-python", version, {"llama_cpp.py": source})
    # What the real one brings along comes from this environment, not from an index.
    numpy = write_wheel(shelf, "sees-numpy", "1", {"sees_numpy.pth": sysconfig.get_path("purelib") + "\n"})
    options = ("--package", "llama-cpp-python", "--versions", ",".join(VERSIONS), "--with", numpy, "--max-ratio", "2")
    files = ("--summary", tmp_path / "summary.md", "--prompt-tokens", "8", "--max-new-tokens", "4", "--json")
    index = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(shelf)}
    done = serve("bisect", model, *options, *files, **index)
    assert done.returncode == 1, done.stderr
    told = json.loads(done.stdout)
    assert told["message"] == "llama-cpp-python 0.3 is the first that is slower; 0.2 is not so"
    assert (told["first_slower"], told["last_good"]) == ("0.3", "0.2")
    text = (tmp_path / "summary.md").read_text()
    assert [word for word in VERSIONS if f"llama-cpp-python {word} against 0.1" in text] == ["0.2", "0.3", "0.4"]
