"""Known vulnerabilities of what `constraints.txt` pins, and of the installed torch, which it leaves open: pip-audit's
part of `make check`.

The vulnerabilities are those that the package index publishes, or else OSV. Where neither can be asked, as behind a
mirror of the index that has files alone, that is said, and nothing fails.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.version import Version

from shearling.console import log

LOCK = Path(__file__).resolve().parents[1] / "constraints.txt"
SERVICES: Mapping[str, Sequence[str]] = {
    "the package index": ("--vulnerability-service", "pypi"),
    "OSV": ("--vulnerability-service", "osv"),
}
PROBED = 3
"""Pins that show whether a service answers."""
ANSWER_S, PROBE_S, AUDIT_S = 4, 8, 300
"""Most that one answer, all probes of a service, and the audit may take: offline, 16 s in all."""


def audit(
    pins: Sequence[str], services: Mapping[str, Sequence[str]] = SERVICES, *, accepted: Sequence[str] = ()
) -> int:
    """Ask the first service that answers, and say what it knows.

    Args:
        pins: `name==version`.
        services: name -> options of pip-audit that choose it.
        accepted: identifiers of vulnerabilities that do not count.

    Returns:
        The exit code: 1 where a pin has a vulnerability, else 0.
    """
    ignored = [part for name in accepted for part in ("--ignore-vuln", name)]
    for service, options in services.items():
        probes = pins[:: max(1, len(pins) // PROBED)][:PROBED]
        if not _answered(_ask(probes, options, limit_s=PROBE_S)):
            continue
        answers = _ask(pins, [*options, *ignored], limit_s=AUDIT_S)
        if _answered(answers):
            return _tell(answers, service)
    log.print(f"pip-audit: skipped, {len(pins)} pins not audited: cannot reach {' or '.join(services)}", soft_wrap=True)
    return 0


def _ask(pins: Sequence[str], options: Sequence[str], *, limit_s: float) -> list[dict[str, Any]]:
    """What pip-audit found out of each pin; empty where its service failed."""
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "requirements.txt"
        file.write_text("".join(f"{pin}\n" for pin in pins), encoding="utf-8")
        # Every version is known, so that nothing is resolved or installed.
        command = [sys.executable, "-m", "pip_audit", "--requirement", str(file), "--no-deps", "--disable-pip"]
        form = ["--format", "json", "--progress-spinner", "off", "--timeout", str(ANSWER_S)]
        try:
            done = subprocess.run(
                [*command, *form, *options], capture_output=True, text=True, check=False, timeout=limit_s
            )
        except subprocess.TimeoutExpired:
            return []
    try:
        return list(json.loads(done.stdout)["dependencies"])
    except (json.JSONDecodeError, KeyError):
        return []


def _answered(answers: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the service knew any of them: pip-audit passes over what it does not find, be it everything."""
    return any("vulns" in answer for answer in answers)


def _tell(answers: Sequence[Mapping[str, Any]], service: str) -> int:
    unknown = [str(answer["name"]) for answer in answers if "vulns" not in answer]
    if unknown:
        log.print(f"pip-audit: {service} does not know {', '.join(unknown)}", soft_wrap=True)
    found = [(answer, vulnerability) for answer in answers for vulnerability in answer.get("vulns", ())]
    for answer, vulnerability in found:
        fixed = ", ".join(vulnerability["fix_versions"]) or "no version yet"
        log.print(
            f"pip-audit: {answer['name']} {answer['version']}: {vulnerability['id']}, fixed in {fixed}", soft_wrap=True
        )
    log.print(f"pip-audit: {len(answers) - len(unknown)} pins asked of {service}, {len(found)} known vulnerabilities")
    return 1 if found else 0


def read_pins(lock: Path) -> list[str]:
    """The pins of the lock, and the installed torch."""
    lines = (line.split("#")[0].strip() for line in lock.read_text(encoding="utf-8").splitlines())
    return [*filter(None, lines), f"torch=={Version(importlib.metadata.version('torch')).public}"]


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description="Ask for known vulnerabilities of what constraints.txt pins.")
    parser.add_argument("--ignore-vuln", action="append", default=[], metavar="ID", help="Accept one; repeatable.")
    sys.exit(audit(read_pins(LOCK), accepted=parser.parse_args().ignore_vuln))


if __name__ == "__main__":
    main()
