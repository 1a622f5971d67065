"""`python -m serve http` in a process, and what tests ask of it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai

START_S = 120.0
END_S = 60.0
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


class HttpServer:
    """A server that runs; see `serving`."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self._log = log
        self.url = ""

    @property
    def log(self) -> str:
        """What it has written on stderr."""
        return self._log.read_text(encoding="utf-8")

    def wait_until_ready(self) -> None:
        deadline_s = time.monotonic() + START_S
        while time.monotonic() < deadline_s and self.process.poll() is None:
            found = re.search(r"ready: (http://\S+)/v1", self.log)
            if found:
                self.url = found[1]
                return
            time.sleep(0.05)
        raise AssertionError(self.log)

    @property
    def children(self) -> list[int]:
        """The processes of its models."""
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def client(self, **options: Any) -> openai.OpenAI:
        """OpenAI's own, without its retries."""
        return openai.OpenAI(
            **{"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0, "timeout": 60.0, **options}
        )

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=60, **options)

    @contextmanager
    def unread(self, path: str, body: Any) -> Iterator[socket.socket]:
        """A connection that has asked, and takes hardly anything of the answer by itself."""
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        host, port = self.url.removeprefix("http://").split(":")
        with socket.socket() as unread:
            unread.settimeout(60)
            # Both make the buffers small, on either side, if they are set before it connects.
            unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            unread.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
            unread.connect((host, int(port)))
            unread.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
            yield unread

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        text = httpx.get(self.url + "/metrics").text
        return sum(float(line.split()[-1]) for line in text.splitlines() if re.match(rf"{name}(\{{| )", line))

    def wait_for(self, name: str, value: float, *, at_most_s: float = 20.0) -> None:
        """Wait until a metric has a value."""
        deadline_s = time.monotonic() + at_most_s
        while self.metric(name) != value:
            assert time.monotonic() < deadline_s, f"{name} is {self.metric(name)}, not {value}"
            time.sleep(0.02)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def end(self) -> tuple[int, dict[str, Any]]:
        """Its exit code, and the object that it prints with --json."""
        output, _ = self.process.communicate(timeout=END_S)
        return self.process.returncode, json.loads(output)


@contextmanager
def serving(*models: str | Path, options: tuple[str, ...] = (), **environment: str) -> Iterator[HttpServer]:
    """A server on a free port, which ends with the context."""
    with starting(*models, options=options, **environment) as server:
        server.wait_until_ready()
        yield server


@contextmanager
def starting(*models: str | Path, options: tuple[str, ...] = (), **environment: str) -> Iterator[HttpServer]:
    """The same, while it loads its models still."""
    variables = {name: value for name, value in os.environ.items() if name != "SHEARLING_API_KEY"}
    with tempfile.NamedTemporaryFile("w", suffix=".log") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "serve", "http", *map(str, models)),
                *("--port", "0", "--threads", "1", "--precision", "fp32", "--json", *options),
            ],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**variables, **environment},
        )
        try:
            yield HttpServer(process, Path(log.name))
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
