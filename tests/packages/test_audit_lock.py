"""The audit of the lock: pip-audit itself, against a service on this machine that speaks OSV's language."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import audit_lock
import pytest

from tests.support.documents import ROOT

PINS = ("numpy==2.4.6", "requests==2.19.0", "rich==15.0.0", "tqdm==4.70.1")
ADVISORY = {
    "id": "GHSA-xxxx-yyyy-zzzz",
    "aliases": [],
    "summary": "requests says too much",
    "affected": [
        {
            "package": {"name": "requests", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.20.0"}]}],
        }
    ],
}


class Vulnerabilities(BaseHTTPRequestHandler):
    """Knows one, of requests."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        known = asked["package"]["name"] == "requests" and asked["version"] == "2.19.0"
        body = json.dumps({"vulns": [ADVISORY]} if known else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silent."""


def osv(port: int) -> dict[str, tuple[str, ...]]:
    return {"OSV": ("--vulnerability-service", "osv", "--osv-url", f"http://127.0.0.1:{port}/v1/query")}


@pytest.fixture(scope="module")
def service() -> Iterator[dict[str, tuple[str, ...]]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Vulnerabilities)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield osv(server.server_port)
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def nobody() -> Iterator[dict[str, tuple[str, ...]]]:
    """A port where nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield osv(taken.getsockname()[1])


def test_a_known_vulnerability_fails_and_is_told(service, capsys):
    assert audit_lock.audit(PINS, service) == 1
    said = capsys.readouterr().err
    assert "requests 2.19.0: GHSA-xxxx-yyyy-zzzz, fixed in 2.20.0" in said
    assert "4 pins asked of OSV, 1 known vulnerabilities" in said


def test_what_is_accepted_does_not_count(service, capsys):
    assert audit_lock.audit(PINS, service, accepted=["GHSA-xxxx-yyyy-zzzz"]) == 0
    assert "4 pins asked of OSV, 0 known vulnerabilities" in capsys.readouterr().err


def test_without_a_service_it_says_so_and_passes_soon(nobody, capsys):
    started = time.monotonic()
    assert audit_lock.audit(PINS, nobody) == 0
    assert time.monotonic() - started < audit_lock.PROBE_S + 2
    assert "skipped, 4 pins not audited: cannot reach OSV" in capsys.readouterr().err


def test_a_service_that_knows_no_pin_was_not_asked(capsys, monkeypatch):
    # What pip-audit makes of an index without such an interface, and calls a success.
    passed_over = [{"name": "requests", "skip_reason": "Dependency not found on PyPI and could not be audited"}]
    monkeypatch.setattr(audit_lock, "_ask", lambda *_given, **_limit: passed_over)
    assert audit_lock.audit(PINS) == 0
    assert "skipped, 4 pins not audited: cannot reach the package index or OSV" in capsys.readouterr().err


def test_a_service_that_hangs_is_left(capsys, monkeypatch):
    monkeypatch.setattr(audit_lock, "PROBE_S", 2)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        assert audit_lock.audit(PINS, osv(listening.getsockname()[1])) == 0
    assert "skipped" in capsys.readouterr().err


def test_the_next_service_is_asked_where_one_is_away(nobody, service):
    assert audit_lock.audit(PINS, {"first": nobody["OSV"], **service}) == 1


def test_the_lock_is_read_whole_and_torch_beside_it():
    pins = audit_lock.read_pins(audit_lock.LOCK)
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert pins[:-1] == [line for line in lines if not line.startswith("#")]
    assert pins[-1].startswith("torch==2.")
    assert "+" not in pins[-1]
