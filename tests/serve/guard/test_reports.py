"""Reports of what may be in a message: quotes, colours, markup, and characters that a format cannot hold."""

from __future__ import annotations

import os
from pathlib import Path
from xml.etree import ElementTree

import pytest

from serve.bench.statistics import Estimate
from serve.guard.process_pairs import judge_pairs
from serve.guard.regression import GUARDED, Verdict
from serve.guard.reports import CheckRecord, append_summary, outcome_counts, record_of, write_junit, write_report
from serve.guard.stage import Reports
from serve.guard.telling import require_pass
from shearling.errors import CheckFailed, PackageMissing, UsageError
from tests.support.serve_command import serve

NASTY = 'a \x1b[31mred\x1b[0m <b>|`word`|</b> & "quoted" ]]> \x00 line\nbreak \ufffe é 漢'


def verdict(outcome: str, *, changes: tuple[str, ...] = ()) -> Verdict:
    ratio = Estimate(median=1.2, low=1.1, high=1.3, samples=16)
    return Verdict(
        outcome=outcome,
        outcomes=dict.fromkeys(GUARDED, outcome),
        ratios=dict.fromkeys(GUARDED, ratio),
        sessions=(1.2, 1.2),
        max_ratio=1.05,
        limits=dict.fromkeys(GUARDED, 1.05),
        blocks=16,
        lost_share=0.0,
        changes=changes,
    )


@pytest.fixture
def records() -> list[CheckRecord]:
    sides = {"name": NASTY, "candidate": NASTY, "reference": NASTY}
    error = record_of(PackageMissing(NASTY, where=NASTY, remedy=NASTY), **sides)
    found = [
        CheckRecord(created="2026-11-27T00:00:00Z", runtimes=(NASTY, NASTY), machine=NASTY, verdict=item, **sides)
        for item in (verdict("regression", changes=(NASTY,)), verdict("pass"), verdict("inconclusive"))
    ]
    return [error, *found]


def test_junit_is_xml_and_counts(records: list[CheckRecord], tmp_path: Path) -> None:
    write_junit(tmp_path / "junit.xml", records)
    suites = ElementTree.parse(tmp_path / "junit.xml").getroot()
    counts = [(suite.attrib["tests"], suite.attrib["failures"], suite.attrib["errors"]) for suite in suites]
    assert counts == [("1", "0", "1"), ("2", "2", "0"), ("2", "0", "0"), ("2", "2", "0")]
    assert '<b>|`word`|</b> & "quoted" ]]>' in suites[0][0].find("error").text
    assert {case.find("failure").attrib["type"] for case in suites[3]} == {"inconclusive"}
    assert "é 漢" in suites[1][0].find("failure").text


def test_what_was_not_measured_long_enough_has_no_ratio(records: list[CheckRecord], tmp_path: Path) -> None:
    outcome, unmeasured = judge_pairs([], max_ratio=1.05, ended=True)
    assert (outcome, unmeasured.samples) == ("inconclusive", 0)
    given = verdict("inconclusive").model_copy(
        update={"ratios": dict.fromkeys(GUARDED, unmeasured), "sessions": (), "blocks": 1}
    )
    with pytest.raises(CheckFailed) as caught:
        require_pass(given)
    write_junit(tmp_path / "junit.xml", [records[3].model_copy(update={"verdict": given})])
    for told in (str(caught.value), (tmp_path / "junit.xml").read_text()):
        assert "not measured long enough" in told
        assert "1.000" not in told
    assert "after 1 pair of samples (" in str(caught.value)


def test_a_pass_with_other_settings_says_so(records: list[CheckRecord], tmp_path: Path) -> None:
    changed = records[2].model_copy(update={"verdict": verdict("pass", changes=("measured with --threads 2",))})
    write_junit(tmp_path / "junit.xml", [changed])
    (suite,) = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert suite.attrib["failures"] == "0"
    assert [case.find("system-out").text.splitlines()[-1] for case in suite] == ["measured with --threads 2"] * 2


def test_markdown_keeps_its_tables(records: list[CheckRecord], tmp_path: Path) -> None:
    append_summary(tmp_path / "summary.md", records)
    append_summary(tmp_path / "summary.md", records[2:3])
    text = (tmp_path / "summary.md").read_text()
    assert text.count("### Latency") == 2
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 4 * (2 + len(GUARDED))
    assert {line.count("|") for line in rows} == {5}
    assert "<b>" not in text.replace("\\<b\\>", "")


def test_the_page_holds_text_as_text(records: list[CheckRecord], tmp_path: Path) -> None:
    write_report(tmp_path / "latency.html", records, notes=[NASTY])
    page = (tmp_path / "latency.html").read_text()
    assert "<b>" not in page
    assert page.count("<h2>") == 4
    assert outcome_counts(records) == {"pass": 1, "regression": 1, "inconclusive": 1, "error": 1}


@pytest.mark.parametrize("error", [ModuleNotFoundError("no such", name="tokenizers"), FileNotFoundError(2, "none")])
def test_whatever_prevents_a_verdict_is_written_once(error: Exception, tmp_path: Path) -> None:
    reports = Reports(tmp_path / "junit.xml")
    with pytest.raises(type(error)), reports.whatever_comes(name="a", candidate="b", reference="c"):
        raise error
    [case] = ElementTree.parse(tmp_path / "junit.xml").getroot()[0]
    [failure] = case
    told = f"{failure.attrib} {failure.text}"
    assert ("tokenizers is not installed" in told) == isinstance(error, ModuleNotFoundError)

    reports = Reports(summary=tmp_path / "summary.md")
    reports.write([record_of(PackageMissing("said before"), name="a", candidate="b", reference="c")])
    written = (tmp_path / "summary.md").read_text(encoding="utf-8")
    with pytest.raises(type(error)), reports.whatever_comes(name="a", candidate="b", reference="c"):
        raise error
    assert (tmp_path / "summary.md").read_text(encoding="utf-8") == written


def test_a_summary_that_cannot_be_written_is_told_in_the_other_file(tmp_path: Path) -> None:
    junit = tmp_path / "junit.xml"
    junit.write_text("of an earlier check")
    reports = Reports(junit, tmp_path / "missing" / "summary.md")
    with pytest.raises(UsageError), reports.whatever_comes(name="a", candidate="b", reference="c"):
        pytest.fail("it measures")
    [suite] = ElementTree.parse(junit).getroot()
    assert len(suite.findall("testcase/error")) == 1
    # A variable of CI that is not set here.
    assert Reports(junit, Path()).summary is None


def test_a_summary_holds_the_name_of_a_path_that_is_no_text(tmp_path: Path) -> None:
    fault = PackageMissing("none")
    record = record_of(fault, name=os.fsdecode(b"caf\xe9"), candidate="b", reference="c")
    Reports(summary=tmp_path / "summary.md").write([record])
    assert "caf?" in (tmp_path / "summary.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--against", "b", "--trace", "none.jsonl"), 2),
        (("--against", "b", "--max-new-tokens", "1"), 2),
        (("--against", "b", "--baseline", "c"), 2),
        (("--baseline", "c", "--max-load-ratio", "1.2"), 2),
        (("--against", "b"), 3),
    ],
)
def test_a_check_that_cannot_begin_says_so_to_ci(options: tuple[str, ...], code: int, tmp_path: Path) -> None:
    report = tmp_path / "junit.xml"
    report.write_text("of an earlier check")
    done = serve("check", tmp_path / "a", *options, "--junit", report)
    assert done.returncode == code, done.stderr
    [suite] = ElementTree.parse(report).getroot()
    assert len(suite.findall("testcase/error")) == 1
