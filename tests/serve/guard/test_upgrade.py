"""Two environments compared: crashes retried, other tokens and other models refused; the runtime is a stand-in whose
steps take their time, so that no verdict hangs on the machine."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.gguf_writer import write_gguf
from serve.guard.regression import Demands, Verdict, check_regression, guard_workload
from serve.guard.telling import require_pass
from serve.runtimes.runtime import RunOptions
from serve.visitor.own_process import usable_cpus
from shearling.errors import CheckFailed, PackageMissing, RuntimeCrashed, UsageError
from shearling.target import parse_target
from tests.support.environments import environment_with
from tests.support.serve_command import serve
from tests.support.stand_in_llama import stand_in, stand_in_environments
from tests.support.tiny_models import llama_tied_gqa, tiny_tokenizer

pytestmark = pytest.mark.alone

WIDE = Demands(max_ratio=1.6)
WORK = guard_workload(8, 4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", llama_tied_gqa(), tiny_tokenizer())


@pytest.fixture(scope="module")
def environments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("environments")
    sources = {
        "old": stand_in(),
        "new": stand_in(),
        "slower": stand_in(step_s=0.012),
        "talkative": stand_in(stride=2),
        "dying": stand_in(dies_unless_threads=2),
        "dead": stand_in(dies_unless_threads=64, signal="SIGSEGV"),
    }
    return stand_in_environments(root, sources)


def check(model: Path, candidate: Path, reference: Path, *, demands: Demands = WIDE) -> Verdict:
    sides = [parse_target(f"{model}@environment={place}") for place in (candidate, reference)]
    return check_regression(*sides, demands=demands, options=RunOptions(threads=1), workload=WORK)[0]


def test_the_same_runtime_passes_and_says_the_same(model: Path, environments: dict[str, Path]) -> None:
    verdict = check(model, environments["new"], environments["old"])
    assert (verdict.outcome, verdict.changes) == ("pass", ())
    assert verdict.tokens.differing == 0
    assert verdict.tokens.prompts == verdict.blocks


def test_a_slower_runtime_is_caught_and_told_in_every_form(
    model: Path, environments: dict[str, Path], tmp_path: Path
) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("what stood there\n")
    sides = [f"{model}@environment={environments[name]}" for name in ("slower", "old")]
    work = ("--max-ratio", "1.6", "--prompt-tokens", "8", "--max-new-tokens", "4", "--json")
    files = ("--junit", tmp_path / "junit.xml", "--summary", summary)
    done = serve("check", sides[0], "--against", sides[1], *work, *files)
    assert done.returncode == 1, done.stderr
    told = json.loads(done.stdout)
    assert told["message"].startswith("latency regression against 1.6")
    assert (told["status"], told["outcome"]) == ("error", "regression")
    assert "pairs of processes: " in done.stderr
    assert min(told["ratios"]["tpot_s"]["low"], told["ratios"]["ttft_s"]["low"]) > 1.6
    (suite,) = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert (suite.attrib["tests"], suite.attrib["failures"], suite.attrib["errors"]) == ("3", "2", "0")
    failed = {case.attrib["name"] for case in suite if case.find("failure") is not None}
    assert failed == {"time to first token", "time per token"}
    text = summary.read_text()
    assert text.startswith("what stood there\n### Latency")
    assert "| time per token | " in text
    assert text.count("**regression**") == 3


def test_other_tokens_fail_unless_they_are_allowed(model: Path, environments: dict[str, Path]) -> None:
    verdict = check(model, environments["talkative"], environments["old"])
    assert verdict.outcome == "changed"
    with pytest.raises(CheckFailed, match=r"the output changed .*other tokens for \d+ of \d+ prompts.*at token 1"):
        require_pass(verdict)
    allowed = check(
        model, environments["talkative"], environments["old"], demands=Demands(1.6, allow_other_tokens=True)
    )
    assert allowed.outcome == "pass"
    assert allowed.tokens.differing == allowed.tokens.prompts


@pytest.mark.skipif(len(usable_cpus()) < 2, reason="the setting that is tried needs a second CPU")
def test_a_crash_is_tried_once_with_one_other_setting_and_told(model: Path, environments: dict[str, Path]) -> None:
    verdict = check(model, environments["dying"], environments["old"])
    assert verdict.outcome != "changed"
    (change,) = verdict.changes
    for words in ("measured with --threads 2", "died of SIGFPE", "1 thread(s)", str(environments["dying"])):
        assert words in change
    assert verdict.sessions


def test_a_crash_that_nothing_avoids_is_an_error_with_its_settings(
    model: Path, environments: dict[str, Path], tmp_path: Path
) -> None:
    sides = [f"{model}@environment={environments[name]}" for name in ("dead", "old")]
    done = serve("check", sides[0], "--against", sides[1], "--junit", tmp_path / "junit.xml", "--json")
    assert done.returncode == RuntimeCrashed.exit_code, done.stderr
    told = json.loads(done.stdout)
    assert "died of SIGSEGV" in told["message"]
    assert "Try --" in told["remedy"]
    assert done.stderr.count("measured with --") == 1
    (suite,) = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert suite.attrib["errors"] == "1"


def test_another_model_in_another_environment_is_refused(
    model: Path, environments: dict[str, Path], tmp_path: Path
) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(model.read_bytes()[:-1] + b"\x01")
    sides = [
        parse_target(f"{other}@environment={environments['new']}"),
        parse_target(f"{model}@environment={environments['old']}"),
    ]
    with pytest.raises(UsageError, match=r"another model than .*--allow-other-tokens"):
        check_regression(*sides, demands=WIDE, options=RunOptions(threads=1), workload=WORK)
    allowed = Demands(1.6, allow_other_tokens=True)
    verdict, _ = check_regression(*sides, demands=allowed, options=RunOptions(threads=1), workload=WORK)
    assert verdict.outcome == "pass"


def test_an_environment_without_the_runtime_is_refused_and_told_to_ci(
    export: Path, environments: dict[str, Path], tmp_path: Path
) -> None:
    bare = environment_with(tmp_path / "bare", module="unrelated", source="", distribution="unrelated")
    sides = [f"{export}@environment={place}" for place in (bare, environments["old"])]
    done = serve("check", sides[0], "--against", sides[1], "--summary", tmp_path / "summary.md")
    assert done.returncode == PackageMissing.exit_code
    assert f"{bare}/bin/python -m pip install numpy openvino" in done.stderr
    assert "cannot be imported there" in (tmp_path / "summary.md").read_text()
