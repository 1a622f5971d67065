"""The plugin as others use it: in test sessions of their own, with and without pytest-xdist.

What a check measures is replaced by the ratio that its candidate is called, so that the plugin alone is under test.
"""

from __future__ import annotations

import html
import itertools
import json
import re
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support.documents import ROOT

STAND_IN = """
import json, os, time
from types import SimpleNamespace

import pytest

from serve.bench.statistics import Estimate
from serve.guard import regression
from serve.guard.calibration import Calibration

def measure(candidate, reference, *, demands, options, workload):
    begun = time.monotonic()
    time.sleep(0.2)
    ratio = float(candidate.path.name)
    metric = lambda: Estimate(median=ratio, low=ratio, high=ratio, samples=16)
    outcome = "pass" if ratio <= demands.max_ratio else "regression"
    verdict = regression.Verdict(
        outcome=outcome, outcomes=dict.fromkeys(regression.GUARDED, outcome), max_ratio=demands.max_ratio,
        ratios={name: metric() for name in regression.GUARDED}, sessions=(), blocks=16, lost_share=0.0,
        limits=dict.fromkeys(regression.GUARDED, demands.max_ratio),
        changes=("measured with --threads 2, because it died",) if ratio == 1.01 else ())
    with open(os.environ["CHECKS"], "a") as stream:
        told = {"budget_s": workload.budget_s, "load": demands.max_load_ratio, "span": [begun, time.monotonic()]}
        stream.write(json.dumps(told) + "\\n")
    environment = SimpleNamespace(cpu="a <processor>", usable_cpus=2, load_average=0.0)
    return verdict, SimpleNamespace(environment=environment, subjects=(), created="2026-11-27T00:00:00Z")

regression._measure = measure
calibrated = []

def calibrate():
    calibrated.append(1)
    assert len(calibrated) == 1, "once a session"
    return Calibration(noise=float(os.environ.get("NOISE", "0.02")), lost_share=0.31, pairs=100)

from serve.guard import calibration
calibration.calibrate = calibrate
"""

TESTS = """
import pytest

pytestmark = pytest.mark.latency(budget_s=30)

@pytest.mark.parametrize("ratio", ["1.0", "1.04"])
def test_passes(latency_guard, ratio):
    latency_guard.assert_not_slower(ratio, than="1")

def test_slower(latency_guard):
    latency_guard.assert_not_slower("1.08", than="1")

@pytest.mark.parametrize("ratio", [
    pytest.param("1.2", marks=pytest.mark.latency(max_ratio=1.3, budget_s=20, max_load_ratio=1.5)),
    pytest.param("1.6", marks=[pytest.mark.latency(max_ratio=1.7), pytest.mark.latency(max_ratio=None)]),
])
def test_budgets_of_their_own(latency_guard, ratio):
    latency_guard.assert_not_slower(ratio, than="1")

def test_what_the_call_says_goes_first(latency_guard):
    latency_guard.assert_not_slower("1.2", than="1", max_ratio=1.25, budget_s=5)
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    pytester.makeconftest(STAND_IN)
    monkeypatch.setenv("CHECKS", str(pytester.path / "checks.jsonl"))
    monkeypatch.setenv("SHEARLING_LATENCY_LOCK", str(pytester.path / "lock"))
    return pytester


def run(project: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return project.runpytest_subprocess("-p", "serve.guard.pytest_plugin", "-p", "no:cacheprovider", *arguments)


def checks(project: pytest.Pytester) -> list[dict]:
    return [json.loads(line) for line in (project.path / "checks.jsonl").read_text().splitlines()]


def test_marks_calls_and_options_set_budgets(project: pytest.Pytester) -> None:
    project.makepyfile(TESTS)
    run(project, "--strict-markers").assert_outcomes(passed=5, failed=1)
    assert [(item["budget_s"], item["load"]) for item in checks(project)] == [
        (30, None),
        (30, None),
        (30, None),
        (20, 1.5),
        (30, None),
        (5, None),
    ]
    found = run(project, "--latency-max-ratio", "1.02", "--latency-budget", "9")
    found.assert_outcomes(passed=4, failed=2)
    found.stdout.fnmatch_lines(["*1.04 against 1: latency regression against 1.02*"])


@pytest.mark.parametrize("workers", [0, 2])
def test_the_report_holds_the_checks_of_all_processes_which_took_turns(project: pytest.Pytester, workers: int) -> None:
    project.makepyfile(TESTS)
    arguments = ["--latency-report=latency.html", *(["-n", str(workers)] if workers else [])]
    found = run(project, *arguments)
    found.assert_outcomes(passed=5, failed=1)
    found.stdout.fnmatch_lines(["*latency*", "checks: 5 pass, 1 regression", "report: latency.html"])
    page = (project.path / "latency.html").read_text()
    names = re.findall(r"<h2>(.*?): <span class=\"(\w+)\"", page)
    assert len(names) == 6
    assert [html.unescape(name).rpartition("::")[2] for name, outcome in names if outcome == "regression"] == [
        "test_slower"
    ]
    assert "a &lt;processor&gt;" in page
    assert page.count("<svg") == 12
    assert not re.search(r"<script|https?://", page)
    spans = sorted(item["span"] for item in checks(project))
    for (_, ended), (begun, _) in itertools.pairwise(spans):
        assert begun >= ended


@pytest.mark.parametrize("arguments", [(), ("-n", "1")])
def test_a_test_that_passed_with_other_settings_says_so(project: pytest.Pytester, arguments: tuple[str, ...]) -> None:
    project.makepyfile(
        "def test(latency_guard):\n    for ratio in ('1.0', '1.01'): latency_guard.assert_not_slower(ratio, than='1')"
    )
    found = run(project, *arguments)
    found.assert_outcomes(passed=1)
    found.stdout.fnmatch_lines(["checks: 2 pass", "*::test: measured with --threads 2, because it died"])
    assert found.stdout.str().count("because it died") == 1


@pytest.mark.parametrize("report", ["missing/latency.html", ".", "/dev/null"])
def test_a_report_that_cannot_be_written_is_refused_before_anything_is_measured(
    project: pytest.Pytester, report: str
) -> None:
    project.makepyfile(TESTS)
    found = run(project, f"--latency-report={report}")
    assert found.ret == pytest.ExitCode.USAGE_ERROR
    found.stderr.fnmatch_lines([f"*--latency-report*{report}*"])
    found.stderr.no_fnmatch_line("*Traceback*")
    assert not (project.path / "checks.jsonl").exists()


def test_collecting_leaves_the_last_report(project: pytest.Pytester) -> None:
    project.makepyfile(TESTS)
    (project.path / "latency.html").write_text("the last one")
    run(project, "--collect-only", "--latency-report=latency.html")
    assert (project.path / "latency.html").read_text() == "the last one"


QUIET = """
import pytest

@pytest.mark.latency_quiet
def test_usual(latency_guard):
    latency_guard.assert_not_slower("1.0", than="1")

@pytest.mark.latency_quiet(0.5)
def test_patient(latency_guard):
    latency_guard.assert_not_slower("1.0", than="1")

def test_unmarked(latency_guard):
    latency_guard.assert_not_slower("1.0", than="1")
"""


def test_a_noisy_machine_skips_what_asks_for_quiet_and_says_so(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.makepyfile(QUIET)
    monkeypatch.setenv("NOISE", "0.2")
    found = run(project, "-rs", "-n", "2")
    found.assert_outcomes(passed=2, skipped=1)
    found.stdout.fnmatch_lines_random(
        [
            "calibration: equal pieces of work differ by 20.0% here, and 31% of the time goes to other processes; "
            "1 tests were skipped for it",
            "*too noisy for latency: equal pieces of work differ by 20.0% *(the limit is 10%)*",
        ]
    )
    run(project, "--latency-noise", "0.3").assert_outcomes(passed=3)
    monkeypatch.setenv("NOISE", "0.02")
    run(project, "--latency-noise", "0").assert_outcomes(passed=2, skipped=1)


def test_a_mark_that_says_something_else_is_refused(project: pytest.Pytester) -> None:
    project.makepyfile(
        "import pytest\n@pytest.mark.latency(maximum=2)\ndef test(request): "
        "request.getfixturevalue('latency_guard').assert_not_slower('1.0', than='1')"
    )
    found = run(project)
    found.stdout.fnmatch_lines(["*latency takes max_ratio, budget_s, *not ?'maximum'?*"])
    assert found.ret != 0


def test_a_mark_of_the_same_name_is_the_projects_own_where_no_guard_is_asked_for(project: pytest.Pytester) -> None:
    project.makepyfile("import pytest\n@pytest.mark.latency('p99', slo=3)\ndef test(): pass")
    run(project).assert_outcomes(passed=1)


@pytest.mark.parametrize("budget", ["inf", "nan", "0", "-1"])
def test_a_budget_that_is_no_time_is_refused(project: pytest.Pytester, budget: str) -> None:
    project.makepyfile("def test(latency_guard): latency_guard.assert_not_slower('1.0', than='1')")
    found = run(project, f"--latency-budget={budget}")
    found.assert_outcomes(failed=1)
    found.stdout.fnmatch_lines(["*this workload cannot be measured: *--budget*"])


def test_sessions_without_latency_hear_nothing_of_it(project: pytest.Pytester) -> None:
    project.makepyfile("def test(): pass")
    run(project).stdout.no_re_match_line("=+ latency =+")


def test_loading_the_plugin_loads_nothing_else(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        "import sys\ndef test(): assert not {'numpy', 'pydantic', 'serve.bench', 'torch'} & set(sys.modules)"
    )
    pytester.runpytest_subprocess("-p", "serve.guard.pytest_plugin", "-p", "no:hypothesispytest").assert_outcomes(
        passed=1
    )


NAMESAKE = """
import pytest
import serve
from serve import api

{marks}
def test_ours_and_theirs(latency_guard):
    verdict = latency_guard.assert_not_slower({candidate!r}, than={reference!r}, max_ratio=50, {more})
    assert verdict.outcome == "pass"
    assert (serve.NAME, api.NAME) == ("theirs", "of theirs")
    import sys
    assert sys.modules["serve"] is serve
    assert [name for name in sys.modules if name.startswith("serve.")] == ["serve.api"]
    from serve import later
    assert later.NAME == "later"
"""


@pytest.fixture
def namesake(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project with a package `serve` of its own, and pytest with the plugin as it is installed."""
    pytester.mkpydir("serve").joinpath("__init__.py").write_text("NAME = 'theirs'\n")
    for name, told in (("api", "of theirs"), ("later", "later")):
        (pytester.path / "serve" / f"{name}.py").write_text(f"NAME = {told!r}\n")
    monkeypatch.setenv("CHECKS", str(pytester.path / "checks.jsonl"))
    monkeypatch.setenv("SHEARLING_LATENCY_LOCK", str(pytester.path / "lock"))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    return pytester


def entry_point() -> str:
    (entry,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"].values()
    return str(entry)


def run_installed(project: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    command = (sys.executable, "-m", "pytest", "-p", entry_point(), "-p", "xdist", "-p", "no:cacheprovider")
    return project.run(*command, *arguments)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_project_with_a_package_serve_keeps_it(namesake: pytest.Pytester, workers: int) -> None:
    stand_in = "from shearling.own_stage import own_stage\nwith own_stage('serve'):\n    " + STAND_IN.replace(
        "\n", "\n    "
    )
    namesake.makeconftest(stand_in)
    namesake.makepyfile(NAMESAKE.format(candidate="1.01", reference="1", more="", marks="@pytest.mark.latency_quiet\n"))
    found = run_installed(namesake, "--latency-report=page.html", *(["-n", "1"] if workers else []))
    found.assert_outcomes(passed=1)
    found.stdout.fnmatch_lines(["calibration: *", "checks: 1 pass", "report: page.html"])
    assert "test_ours_and_theirs" in (namesake.path / "page.html").read_text()


@pytest.mark.slow
def test_a_project_with_a_package_serve_measures(namesake: pytest.Pytester, export: Path) -> None:
    side = f"{export}@format=onnx"
    more = "options={'huge_pages': False}, workload={'prompt_tokens': 8, 'new_tokens': 4}"
    namesake.makepyfile(NAMESAKE.format(candidate=side, reference=side, more=more, marks=""))
    run_installed(namesake).assert_outcomes(passed=1)


def test_loaded_before_the_project_is_on_the_path_it_takes_no_name_from_it(namesake: pytest.Pytester) -> None:
    """As by `pytest` alone, which puts the directory of a test there when it imports it."""
    namesake.makepyfile("def test():\n    import serve\n    assert serve.NAME == 'theirs'")
    start = "import sys; sys.path.remove(''); import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    project_first = ("-c", "pytest.ini", "-o", "pythonpath=.")
    (namesake.path / "pytest.ini").write_text("[pytest]\n")
    found = namesake.run(sys.executable, "-c", start, "-p", entry_point(), *project_first)
    found.assert_outcomes(passed=1)


def test_named_as_well_as_installed_it_is_there_once(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    project.makepyfile("def test(latency_guard): latency_guard.assert_not_slower('1.0', than='1')")
    run_installed(project, "-p", "serve.guard.pytest_plugin").assert_outcomes(passed=1)
    run_installed(project).assert_outcomes(passed=1)
