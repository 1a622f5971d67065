"""The first slower version: found among invented ones, and among packages that pip really installs."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.gguf_writer import write_gguf
from serve.guard.bisection import (
    RECORD,
    Bisection,
    Installation,
    _bracket,
    bisect_versions,
    keep_environment,
    parse_versions,
    require_none_slower,
)
from serve.guard.regression import Verdict, worst
from serve.guard.reports import CheckRecord
from shearling.errors import CheckFailed, PackageMissing, UsageError
from shearling.virtual_environment import from_anywhere, make_environment, remove_environment
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

        assert _bracket(count, measure) == (first - 1, first)
        assert len(asked) == len(set(asked)) <= 1 + (count - 1).bit_length()
    assert _bracket(count, lambda place: "pass") is None


def bisected(monkeypatch: pytest.MonkeyPatch, **outcomes: dict[str, str]) -> Bisection:
    """Of four versions, each of which has these outcomes by metric."""
    monkeypatch.setattr("serve.guard.bisection.keep_environment", lambda root, installation, version: Path(version))

    def check(candidate: Path, reference: Path, version: str) -> tuple[Verdict, CheckRecord]:
        found = outcomes[f"v{version[-1]}"]
        verdict = Verdict(
            outcome=worst(found.values()),
            outcomes=found,
            ratios={},
            sessions=(),
            max_ratio=1.05,
            blocks=24,
            lost_share=0,
        )
        record = CheckRecord(
            name=version, candidate=version, reference="0.1", created="now", verdict=verdict, error=None
        )
        return verdict, record

    return bisect_versions(VERSIONS, Installation("openvino"), check)


def test_what_is_inconclusive_leaves_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    found = bisected(monkeypatch, v4={"tpot_s": "regression"}, v2={"tpot_s": "inconclusive"})
    assert (found.last_good, found.first_slower, found.known_slower) == ("0.1", None, "0.4")
    with pytest.raises(CheckFailed, match=r"inconclusive for openvino 0\.2; 0\.4 is slower, 0\.1 is not so"):
        require_none_slower(found)
    found = bisected(monkeypatch, v4={"tpot_s": "inconclusive"})
    with pytest.raises(CheckFailed, match=r"inconclusive for openvino 0\.4\. Measure longer"):
        require_none_slower(found)


def test_other_tokens_are_not_taken_for_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    other = {"tpot_s": "pass", "tokens": "changed"}
    slow = {"tpot_s": "regression", "tokens": "changed"}
    found = bisected(monkeypatch, v2=other, v3=other, v4=slow)
    with pytest.raises(CheckFailed, match=r"0\.4 is the first that is slower; 0\.3 is not so; .* in 0\.2, 0\.3"):
        require_none_slower(found)
    found = bisected(monkeypatch, v2={"tpot_s": "regression", "tokens": "pass"}, v3=other, v4=other)
    with pytest.raises(CheckFailed, match=r"0\.3 is the first that changes its output; 0\.2 is not so"):
        require_none_slower(found)
    # What may hide behind other tokens is open.
    found = bisected(monkeypatch, v2={"tpot_s": "inconclusive", "tokens": "changed"}, v4=slow)
    assert (found.first_slower, found.known_slower) == (None, "0.4")


def test_another_figure_that_was_worse_and_is_mended_is_not_the_one_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    mended = {"ttft_s": "regression", "tpot_s": "pass"}
    found = bisected(monkeypatch, v2=mended, v3=mended, v4={"ttft_s": "pass", "tpot_s": "regression"})
    assert (found.last_good, found.first_slower) == ("0.3", "0.4")


def test_a_last_version_that_passes_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = bisected(monkeypatch, v4={"tpot_s": "pass"})
    require_none_slower(found)
    assert (found.passed, list(found.outcomes)) == (True, ["0.4"])


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


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where pip finds what it installs: `some-runtime` 1 and 2, and `companion` 1."""
    directory = tmp_path / "shelf"
    directory.mkdir()
    for name, version in (("some-runtime", "1"), ("some-runtime", "2"), ("companion", "1")):
        write_wheel(directory, name, version, {f"{name.replace('-', '_')}.py": f"VERSION = {version}"})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    return directory


def held_by(environment: Path) -> dict[str, int]:
    (packages,) = environment.glob("lib/python*/site-packages")
    return {path.stem: path.stat().st_ino for path in packages.glob("*.py")}


def test_paths_are_relative_to_where_the_command_was_given(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "python").symlink_to(sys.executable)
    (wheel,) = shelf.glob("companion*")
    shutil.copy(wheel, tmp_path)
    installation = Installation("some-runtime", (wheel.name,), Path("own/python"))
    place = keep_environment(tmp_path / "kept", installation, "2")
    assert held_by(place).keys() >= {"some_runtime", "companion"}
    # From elsewhere the same words name something else.
    monkeypatch.chdir(tmp_path / "own")
    assert installation.requirements("2") == ["some-runtime==2", wheel.name]
    beside = f"../{wheel.name}"
    assert [from_anywhere(text) for text in ("numpy==2.1", "python3.12", beside, f"{beside}[guard]")] == [
        "numpy==2.1",
        "python3.12",
        f"{tmp_path}/own/{beside}",
        f"{tmp_path}/own/{beside}[guard]",
    ]


@pytest.mark.usefixtures("shelf")
def test_a_kept_environment_is_used_again_if_it_holds_the_same(tmp_path: Path) -> None:
    installation = Installation("some-runtime", ())
    place = keep_environment(tmp_path, installation, "1")
    first = held_by(place)
    assert first.keys() == {"some_runtime"}
    again = keep_environment(tmp_path, installation, "1")
    assert (again, held_by(again)) == (place, first)
    # Other requirements take nothing away from whoever measures.
    other = keep_environment(tmp_path, replace(installation, also=("companion",)), "1")
    assert held_by(other).keys() == {"some_runtime", "companion"}
    assert held_by(again) == first


def test_what_somebody_installs_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []
    begun, go_on = threading.Event(), threading.Event()

    def make(directory: Path, requirements: Sequence[str], *, python: Path | None) -> None:
        made.append(directory)
        begun.set()
        assert go_on.wait(20)
        (directory / "finished").touch()

    def found() -> list[str]:
        place = keep_environment(tmp_path, Installation("some-runtime", ()), "1")
        return sorted(path.name for path in place.iterdir())

    monkeypatch.setattr("serve.guard.bisection.make_environment", make)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(found)
        assert begun.wait(20)
        second = pool.submit(found)
        with pytest.raises(TimeoutError):
            second.result(timeout=0.2)
        go_on.set()
        assert first.result() == second.result() == ["finished", RECORD]
    assert len(made) == 1


@pytest.mark.usefixtures("shelf")
def test_an_environment_whose_making_was_killed_is_made_anew(tmp_path: Path) -> None:
    making = (
        "import sys; from pathlib import Path; from serve.guard.bisection import Installation, keep_environment; "
        "keep_environment(Path(sys.argv[1]), Installation('some-runtime', ()), '1')"
    )
    process = subprocess.Popen([sys.executable, "-c", making, str(tmp_path / "kept")])
    while not any(tmp_path.glob("kept/some-runtime-1-*/bin/python")):
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.wait()
    place = keep_environment(tmp_path / "kept", Installation("some-runtime", ()), "1")
    assert held_by(place).keys() == {"some_runtime"}


def test_what_tells_whose_an_environment_is_goes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bin", "lib", "share"):
        (tmp_path / "place" / name).mkdir(parents=True)
    (tmp_path / "place" / RECORD).write_text("{}")
    removed: list[str] = []

    def interrupted(directory: Path, **_: object) -> None:
        removed.append(directory.name)
        if len(removed) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        remove_environment(tmp_path / "place")
    assert set(removed) == {"bin", "lib", "share"}
    assert (tmp_path / "place" / RECORD).exists()


@pytest.mark.usefixtures("shelf")
def test_what_somebody_else_has_made_is_neither_used_nor_removed(tmp_path: Path) -> None:
    installation = Installation("some-runtime", ())
    place = keep_environment(tmp_path, installation, "1")
    (place / RECORD).unlink()
    with pytest.raises(UsageError, match="no record tells what it holds"):
        keep_environment(tmp_path, installation, "1")
    assert (place / "bin" / "python").exists()


@pytest.mark.usefixtures("shelf")
def test_a_version_that_pip_cannot_install_is_in_the_reports(tmp_path: Path) -> None:
    files = ("--junit", tmp_path / "junit.xml", "--summary", tmp_path / "summary.md")
    versions = ("--package", "some-runtime", "--versions", "1,3", "--with", "companion")
    done = serve("bisect", tmp_path / "model.gguf", *versions, *files)
    assert done.returncode == PackageMissing.exit_code, done.stderr
    (suite,) = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert suite.attrib["errors"] == "1"
    error = suite.find("testcase/error")
    assert error is not None
    assert "some-runtime==3" in error.attrib["message"]
    assert "some-runtime==3" in (tmp_path / "summary.md").read_text()


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
