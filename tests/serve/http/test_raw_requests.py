"""What the server makes of requests byte by byte, which no client library would send as they are here."""

from __future__ import annotations

import json
import re
import socket
import time

import pytest
from starlette.responses import Response
from starlette.testclient import TestClient

from serve.http.door import Door
from serve.http.metrics import ServerMetrics
from tests.support.http_server import COMPLETIONS, HttpServer

BODY = json.dumps({"model": "tiny", "prompt": "hi", "max_tokens": 1}).encode()
HIDDEN = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
LAST = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
UPGRADES = {
    "h2c": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAA\r\n",
    "websocket": b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
}


def answers(server: HttpServer, *packets: bytes) -> list[tuple[int, bytes]]:
    """Status and body of each answer until the server closes the connection."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for packet in packets:
            connection.sendall(packet)
            time.sleep(0.05)
        received = b""
        while piece := connection.recv(1 << 16):
            received += piece
    parts = re.split(rb"HTTP/1\.1 (\d{3}) .*\r\n", received)
    return [
        (int(status), rest.partition(b"\r\n\r\n")[2]) for status, rest in zip(parts[1::2], parts[2::2], strict=True)
    ]


@pytest.mark.parametrize("upgrade", UPGRADES)
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("body", [BODY, HIDDEN])
def test_an_offered_upgrade_is_ignored_and_the_body_is_a_body(
    server: HttpServer, upgrade: str, split: bool, body: bytes
) -> None:
    """As Java's HttpClient and `curl --http2` offer it with every request."""
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
    head += UPGRADES[upgrade] + f"Content-Length: {len(body)}\r\n\r\n".encode()
    first, last = answers(server, *((head, body) if split else (head + body,)), LAST)
    assert (last[0], json.loads(last[1])["status"]) == (200, "ok")
    told = json.loads(first[1])
    if body is BODY:
        assert (first[0], told["usage"]["completion_tokens"]) == (200, 1)
    else:
        assert (first[0], told["error"]["code"]) == (400, "invalid_json")
    assert "pgrade" not in server.log


def test_a_head_without_end_is_not_kept(server: HttpServer) -> None:
    endless = [b"X-Padding: " + b"x" * 20_000 for _ in range(2)]
    assert [status for status, _ in answers(server, b"GET /health HTTP/1.1\r\nHost: localhost\r\n", *endless)] == [400]


@pytest.mark.parametrize("path", ["/health", "/metrics", "/v1/models", "/v1/models/tiny/sparse"])
def test_what_can_be_read_can_be_asked_for_without_its_body(server: HttpServer, path: str) -> None:
    """As `wget --spider` and watchers of health do."""
    (status, body), (last, _) = answers(server, f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(), LAST)
    assert (status, body, last) == (200, b"", 200)


OWN = ["localhost", "LocalHost:8000", "localhost.", "app.localhost:80", "127.0.0.1", "192.0.2.7:8000", "[::1]:8000", ""]
FOREIGN = [
    "a.example",
    "localhost.a.example",
    "127.0.0.1.a.example:8000",
    "localhost@a.example",
    "[::1",
    "notlocalhost",
]


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/health"])
def test_names_that_others_gave_to_this_machine_are_refused(server: HttpServer, path: str) -> None:
    """A page whose own name leads here is of the same origin to a browser, and may send what it likes."""

    def status(host: str) -> int:
        ((status, body),) = answers(
            server, f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
        )
        assert ("host_not_allowed" in body.decode()) == (status == 403)
        return status

    assert {host: status(host) for host in OWN + FOREIGN} == {**dict.fromkeys(OWN, 200), **dict.fromkeys(FOREIGN, 403)}
    # Before `Host` was asked for; no browser does so.
    assert [status for status, _ in answers(server, f"GET {path} HTTP/1.0\r\n\r\n".encode())] == [200]


def test_a_name_that_the_server_was_given_is_its_own() -> None:
    for own_host, allowed in (("Box.test", True), ("other.test", False), (None, True)):
        door = Door(Response("in"), api_key=None, own_host=own_host, metrics=ServerMetrics({}))
        answer = TestClient(door).get("/health", headers={"host": "box.test:8000"})
        assert answer.status_code == (200 if allowed else 403), own_host
