"""Verdicts for those who were not there: JUnit XML and Markdown for CI, a page for people."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from serve.bench.benchmark import Benchmark
from serve.bench.statistics import Estimate
from serve.guard.regression import CheckOutcome, Verdict
from serve.guard.telling import show_ratio, tell_measuring
from shearling.artefact import utc_now
from shearling.errors import ShearlingError
from shearling.markdown import escape_markdown
from shearling.page import render_page
from shearling.strict_json import Document, write_text

TEMPLATE = Path(__file__).with_name("report.html.jinja")
TITLES: Mapping[str, str] = {
    "ttft_s": "time to first token",
    "tpot_s": "time per token",
    "every_token_s": "time per token, all of them",
    "load_s": "time to load",
    "peak_memory_bytes": "peak memory",
    "tokens": "tokens",
}
SIGNS: Mapping[str, str] = {"pass": "pass", "regression": "**regression**", "changed": "**changed**"}
NO_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML cannot hold, such as the colours of what a runtime said."""
BAR = 240.0
"""Width of a drawn interval, in pixels; it spans ratios from 1 / SPAN to SPAN."""
SPAN = 1.5


class CheckRecord(Document):
    """One check, finished or failed.

    Attributes:
        name: of a test, or what was compared.
        verdict: None where there is none.
        error: why there is none.
        runtimes: what ran on both sides, the reference first.
        machine: on which.
    """

    name: str
    candidate: str
    reference: str
    created: str
    verdict: Verdict | None
    error: str | None = None
    runtimes: tuple[str, ...] = ()
    machine: str | None = None

    @property
    def outcome(self) -> str:
        """Of the verdict, or `error`."""
        return "error" if self.verdict is None else self.verdict.outcome


def record_of(
    found: tuple[Verdict, Benchmark] | ShearlingError, *, name: str, candidate: str, reference: str
) -> CheckRecord:
    """What came of a check."""
    if isinstance(found, ShearlingError):
        return CheckRecord(
            name=name, candidate=candidate, reference=reference, created=utc_now(), verdict=None, error=str(found)
        )
    verdict, benchmark = found
    environment = benchmark.environment
    return CheckRecord(
        name=name,
        candidate=candidate,
        reference=reference,
        created=benchmark.created,
        verdict=verdict,
        runtimes=tuple(f"{item.facts.runtime}, {item.facts.precision}" for item in benchmark.subjects),
        machine=f"{environment.cpu}, {environment.usable_cpus} CPUs, load {environment.load_average}",
    )


def write_junit(path: Path, records: Sequence[CheckRecord]) -> None:
    """One case for each metric of each check: a failure for anything but a pass, an error where nothing was measured.

    Each says how it was measured, a pass as well: it may be one with other settings than those asked for.

    Args:
        path: the XML file; written anew.
        records: at least one.
    """
    root = ElementTree.Element("testsuites", name="serve check")
    for record in records:
        suite = ElementTree.SubElement(root, "testsuite", name=record.name, timestamp=record.created)
        verdict, counts = record.verdict, {"failures": 0, "errors": 0}
        if verdict is None:
            case = ElementTree.SubElement(suite, "testcase", classname=record.name, name="check")
            ElementTree.SubElement(case, "error", message=record.error or "").text = record.error
            counts["errors"] += 1
        for metric, outcome in verdict.outcomes.items() if verdict else ():
            case = ElementTree.SubElement(suite, "testcase", classname=record.name, name=TITLES.get(metric, metric))
            told = _told(record, metric)
            whole = "\n".join([told, *record.runtimes, *(tell_measuring(verdict) if verdict else ())])
            if outcome == "pass":
                ElementTree.SubElement(case, "system-out").text = whole
            else:
                ElementTree.SubElement(case, "failure", type=outcome, message=f"{outcome}: {told}").text = whole
                counts["failures"] += 1
        suite.attrib |= {"tests": str(len(suite)), **{name: str(count) for name, count in counts.items()}}
    ElementTree.indent(root)
    text = NO_XML.sub("?", ElementTree.tostring(root, encoding="unicode"))
    write_text(path, f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n')


def append_summary(path: Path, records: Sequence[CheckRecord]) -> None:
    """Add a section to a Markdown file, as GitHub's step summary wants it.

    Args:
        path: such as $GITHUB_STEP_SUMMARY; made if it is absent.
        records: at least one.
    """
    # A path may hold what is no text.
    with path.open("a", encoding="utf-8", errors="replace") as stream:
        stream.write(_markdown(records))


def write_report(path: Path, records: Sequence[CheckRecord], *, notes: Sequence[str] = ()) -> None:
    """A page of all checks: no script, no external resource."""
    machines = sorted({record.machine for record in records if record.machine})
    rows = [_row(record) for record in records]
    write_text(path, render_page(TEMPLATE, records=rows, notes=[*machines, *notes], width=BAR))


def _markdown(records: Sequence[CheckRecord]) -> str:
    lines = ["### Latency", ""]
    for record in records:
        lines += [f"**{escape_markdown(record.name)}**: {SIGNS.get(record.outcome, f'**{record.outcome}**')}", ""]
        if record.verdict is None:
            lines += [escape_markdown(record.error or ""), ""]
            continue
        lines += ["| | candidate over reference | at most | |", "|---|---|---|---|"]
        for metric, outcome in record.verdict.outcomes.items():
            limit = record.verdict.limits.get(metric)
            shown = "" if limit is None else f"{limit:g}"
            title, sign = TITLES.get(metric, metric), SIGNS.get(outcome, outcome)
            lines.append(f"| {title} | {_told(record, metric)} | {shown} | {sign} |")
        lines.append("")
        if record.runtimes:
            lines += [
                escape_markdown(
                    f"{record.reference}: {record.runtimes[0]}. {record.candidate}: {record.runtimes[-1]}."
                ),
                "",
            ]
        for note in (*tell_measuring(record.verdict), record.machine or ""):
            lines += [escape_markdown(note), ""] if note else []
    return "\n".join(lines) + "\n"


def _row(record: CheckRecord) -> dict[str, object]:
    verdict = record.verdict
    if verdict is None:
        return {"record": record, "metrics": [], "changes": ()}
    metrics = [
        {
            "title": TITLES.get(metric, metric),
            "told": _told(record, metric),
            "outcome": outcome,
            "limit": verdict.limits.get(metric),
            "bar": _bar(verdict.ratios.get(metric), verdict.limits.get(metric)),
        }
        for metric, outcome in verdict.outcomes.items()
    ]
    return {"record": record, "metrics": metrics, "changes": tell_measuring(verdict)}


def _bar(ratio: Estimate | None, limit: float | None) -> dict[str, float] | None:
    if ratio is None or limit is None:
        return None
    values = {"low": ratio.low, "high": ratio.high, "median": ratio.median, "limit": limit, "one": 1.0}
    return {name: round(_place(value), 1) for name, value in values.items()}


def _place(value: float) -> float:
    # Clamped: an unbounded interval reaches both ends.
    share = (min(max(value, 1 / SPAN), SPAN) - 1 / SPAN) / (SPAN - 1 / SPAN)
    return BAR * share


def _told(record: CheckRecord, metric: str) -> str:
    verdict = record.verdict
    if verdict is None:
        return ""
    if metric in verdict.ratios:
        return show_ratio(verdict.ratios[metric])
    return verdict.tokens.told() if verdict.tokens else ""


def outcome_counts(records: Sequence[CheckRecord]) -> dict[str, int]:
    """How many checks ended in which way; what did not occur is left out."""
    known: tuple[CheckOutcome | str, ...] = ("pass", "regression", "changed", "inconclusive", "error")
    counted = {outcome: sum(record.outcome == outcome for record in records) for outcome in known}
    return {outcome: count for outcome, count in counted.items() if count}
