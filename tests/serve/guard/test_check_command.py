"""`python -m serve check` by its options, from the command to the exit code, the JSON and JUnit.

Load time, memory, other tokens and another model.

The runtime is a stand-in, and what is caught is so large that no other work on the machine hides it.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.gguf_writer import write_gguf
from tests.support.serve_command import serve
from tests.support.stand_in_llama import stand_in, stand_in_environments
from tests.support.tiny_models import llama_tied_gqa, tiny_tokenizer

pytestmark = pytest.mark.slow

WORK = ("--max-ratio", "50", "--prompt-tokens", "8", "--max-new-tokens", "4", "--no-huge-pages", "--json")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", llama_tied_gqa(), tiny_tokenizer())


@pytest.fixture(scope="module")
def environments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("environments")
    sources = {
        "old": stand_in(),
        "new": stand_in(),
        "heavy": stand_in(load_s=0.5, hoard_bytes=300_000_000),
        "talkative": stand_in(stride=2),
    }
    return stand_in_environments(root, sources)


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits for other checks: what is looked for is no matter of noise."""
    monkeypatch.setenv("SHEARLING_LATENCY_LOCK", str(tmp_path / "lock"))


def check(candidate: str, reference: str, *options: str | Path) -> tuple[subprocess.CompletedProcess[str], Any]:
    done = serve("check", candidate, "--against", reference, *WORK, *options)
    return done, json.loads(done.stdout)


@pytest.mark.usefixtures("lock")
def test_load_time_and_memory_are_caught_by_their_options_alone(
    model: Path, environments: dict[str, Path], tmp_path: Path
) -> None:
    sides = [f"{model}@environment={environments[name]}" for name in ("heavy", "old")]
    done, told = check(*sides)
    assert (done.returncode, told["outcomes"]["ttft_s"], told["outcomes"]["tpot_s"]) == (0, "pass", "pass"), done.stderr
    limits = ("--max-load-ratio", "3", "--max-memory-ratio", "1.5")
    done, told = check(*sides, *limits, "--junit", tmp_path / "junit.xml")
    assert done.returncode == 1, done.stderr
    assert told["outcomes"] == {
        "ttft_s": "pass",
        "tpot_s": "pass",
        "peak_memory_bytes": "regression",
        "load_s": "regression",
        "tokens": "pass",
    }
    assert (told["limits"]["load_s"], told["limits"]["peak_memory_bytes"]) == (3, 1.5)
    assert "against 3: regression" in told["message"]
    (suite,) = ElementTree.parse(tmp_path / "junit.xml").getroot()
    failed = {case.attrib["name"] for case in suite if case.find("failure") is not None}
    assert failed == {"time to load", "peak memory"}


@pytest.mark.usefixtures("lock")
def test_other_tokens_fail_unless_they_are_allowed(model: Path, environments: dict[str, Path]) -> None:
    sides = [f"{model}@environment={environments[name]}" for name in ("talkative", "old")]
    done, told = check(*sides)
    assert (done.returncode, told["outcome"]) == (1, "changed"), done.stderr
    assert told["message"].startswith("the output changed")
    assert "--allow-other-tokens judges the times alone" in told["remedy"]
    done, told = check(*sides, "--allow-other-tokens")
    assert (done.returncode, told["outcome"], told["tokens"]["allowed"]) == (0, "pass", True), done.stderr
    assert told["tokens"]["differing"] == told["tokens"]["prompts"]


@pytest.mark.usefixtures("lock")
def test_another_model_in_another_environment_is_refused_unless_it_is_allowed(
    model: Path, environments: dict[str, Path], tmp_path: Path
) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(model.read_bytes()[:-1] + b"\x01")
    sides = (f"{other}@environment={environments['new']}", f"{model}@environment={environments['old']}")
    done, told = check(*sides)
    assert (done.returncode, told["error"]) == (2, "UsageError"), done.stderr
    assert "another model than" in told["message"]
    done, told = check(*sides, "--allow-other-tokens")
    assert (done.returncode, told["outcome"]) == (0, "pass"), done.stderr
