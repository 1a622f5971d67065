"""How a server starts and ends: nothing that it accepted is lost."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import openai
import pytest

from serve.http.limits import CHOICES
from serve.http.server import LAST_ANSWERS_S
from serve.http.stage import INSTALL
from tests.support.documents import ROOT
from tests.support.http_server import COMPLETIONS, HttpServer, serving, starting
from tests.support.serve_command import serve

TOKENS = 200
REQUEST = {"model": "tiny", "prompt": "Area man", "max_tokens": TOKENS, "ignore_eos": True}


TEXTS = 4
REQUESTS = 8
"""Each with as many texts as there may be: together more work than is done in the time for last answers."""


class Client(threading.Thread):
    """Asks again and again, for several texts at once, until the server is gone."""

    def __init__(self, server: HttpServer, *, stream: bool) -> None:
        super().__init__()
        self._server = server
        self._stream = stream
        self.outcomes: Counter[str] = Counter()
        self.start()

    def run(self) -> None:
        with self._server.client() as client:
            while "gone" not in self.outcomes:
                self.outcomes[self._ask(client)] += 1

    def _ask(self, client: openai.OpenAI) -> str:
        body = {name: value for name, value in REQUEST.items() if name != "ignore_eos"} | {"n": TEXTS}
        answered = 0
        try:
            extra = {"ignore_eos": True}
            if self._stream:
                options = {"include_usage": True}
                for chunk in client.completions.create(**body, extra_body=extra, stream=True, stream_options=options):
                    answered = chunk.usage.completion_tokens if chunk.usage else -1
            else:
                answered = client.completions.create(**body, extra_body=extra).usage.completion_tokens
        except openai.APIConnectionError:
            return "gone" if answered == 0 else "cut off"
        except openai.InternalServerError as error:
            time.sleep(0.01)
            return "refused" if (error.status_code, error.code) == (503, "shutting_down") else str(error)
        return "whole" if answered == TEXTS * TOKENS else "cut off"


def test_sigterm_under_load_loses_nothing_that_was_accepted(export: Path) -> None:
    with serving(f"tiny={export}", options=("--concurrency", "2")) as server:
        clients = [Client(server, stream=number % 2 == 0) for number in range(12)]
        # Some run, and more wait for their turn.
        while server.metric("shearling_new_tokens_total") < 5000 or server.metric("shearling_waiting_texts") < 8:
            time.sleep(0.01)
        server.terminate()
        for client in clients:
            client.join(60)
        outcomes = sum((client.outcomes for client in clients), Counter())
        code, told = server.end()
    assert outcomes.keys() <= {"whole", "refused", "gone"}
    assert outcomes["whole"] == told["answered"]
    assert outcomes["refused"] > 0
    assert code == 0


def test_health_says_that_it_is_ending(export: Path) -> None:
    with serving(f"tiny={export}", options=("--concurrency", "1")) as server:
        assert httpx.get(server.url + "/health").json() == {"status": "ok", "models_down": []}
        with httpx.stream("POST", server.url + COMPLETIONS, json={**REQUEST, "n": 16, "stream": True}) as response:
            lines = response.iter_lines()
            next(lines)
            server.terminate()
            health = httpx.get(server.url + "/health")
            assert (health.status_code, health.json()["status"]) == (503, "shutting down")
            assert httpx.get(server.url + "/v1/models").status_code == 200
            assert "[DONE]" in "".join(lines)
        assert server.end() == (0, {"status": "ok", "answered": 1})


@pytest.mark.parametrize("how", ["a second signal", "the end of the grace"])
def test_what_does_not_end_in_time_is_told(export: Path, how: str) -> None:
    options = ("--concurrency", "1", "--grace", "0.01" if how == "the end of the grace" else "600")
    with serving(f"tiny={export}", options=options) as server, ExitStack() as unread:
        for _ in range(REQUESTS):
            unread.enter_context(server.unread(COMPLETIONS, {**REQUEST, "n": CHOICES, "stream": True}))
        while server.metric("shearling_waiting_texts") <= (REQUESTS - 1) * CHOICES:
            time.sleep(0.01)
        server.terminate()
        if how == "a second signal":
            while httpx.get(server.url + "/health").status_code == 200:
                time.sleep(0.01)
            server.process.send_signal(signal.SIGINT)
        ended_s = time.monotonic()
        code, told = server.end()
        assert time.monotonic() - ended_s < LAST_ANSWERS_S
    assert code == 1
    # One may still be finished in the time for last answers, never all of them.
    assert re.match(rf"[1-{REQUESTS}] of {REQUESTS} requests were not answered", told["message"])
    assert "--grace," in told["remedy"]


def test_nobody_is_answered_and_told_of_as_lost(export: Path) -> None:
    with serving(f"tiny={export}", options=("--concurrency", "1", "--grace", "0.01")) as server:
        read = []
        with httpx.stream("POST", server.url + COMPLETIONS, json={**REQUEST, "n": CHOICES, "stream": True}) as response:
            lines = response.iter_lines()
            read.append(next(lines))
            server.terminate()
            with suppress(httpx.RemoteProtocolError, httpx.ReadError):
                read.extend(lines)
        code, told = server.end()
    assert (code, "data: [DONE]" in read) == (1, False)
    assert "1 of 1 requests were not answered" in told["message"]


def test_a_second_signal_when_nobody_waits_loses_nobody(export: Path) -> None:
    with serving(f"tiny={export}") as server:
        assert server.post(COMPLETIONS, {**REQUEST, "max_tokens": 1}).status_code == 200
        for _ in range(2):
            server.terminate()
        assert server.end() == (0, {"status": "ok", "answered": 1})


def test_a_model_whose_process_dies(export: Path) -> None:
    with serving(f"tiny={export}", f"other={export}") as server:
        children = server.children
        assert len(children) == 2
        os.kill(children[0], signal.SIGKILL)
        deadline_s = time.monotonic() + 20
        while httpx.get(server.url + "/health").status_code == 200:
            assert time.monotonic() < deadline_s
        assert httpx.get(server.url + "/health").json() == {"status": "degraded", "models_down": ["tiny"]}
        down = server.post(COMPLETIONS, REQUEST)
        assert (down.status_code, down.json()["error"]["code"]) == (503, "model_down")
        assert server.post(COMPLETIONS, {**REQUEST, "model": "other"}).status_code == 200
        assert "tiny: the system killed its process, most likely for memory" in server.log
        server.terminate()
        assert server.end()[0] == 0
        assert "other: " not in server.log.partition("ready:")[2]


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (signal.SIGKILL, "tiny: the system killed its process, most likely for memory"),
        (signal.SIGSEGV, "tiny: its process died of SIGSEGV"),
    ],
)
def test_a_server_without_any_model_ends(export: Path, number: signal.Signals, told: str) -> None:
    with serving(f"tiny={export}", options=("--concurrency", "1")) as server:
        # Texts that take their turns: many wait still when the first token is read, however late that is.
        with httpx.stream("POST", server.url + COMPLETIONS, json={**REQUEST, "n": CHOICES, "stream": True}) as response:
            lines = response.iter_lines()
            next(lines)
            os.kill(server.children[0], number)
            assert "model_down" in "".join(lines)
        code, error = server.end()
        assert code == 4, server.log
        assert told in server.log
        assert "no model is left" in error["message"]
        assert "Traceback" not in server.log


def test_a_server_that_is_killed_leaves_no_process(export: Path) -> None:
    with serving(f"tiny={export}") as server:
        children = server.children
        server.process.kill()
        server.process.wait()
        deadline_s = time.monotonic() + 20
        while any(_runs(child) for child in children):
            assert time.monotonic() < deadline_s


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_while_models_load_ends_the_server(export: Path, number: signal.Signals, code: int) -> None:
    with starting(f"tiny={export}", f"other={export}") as server:
        while not server.children:
            time.sleep(0.005)
        children = server.children
        server.process.send_signal(number)
        output, _ = server.process.communicate(timeout=20)
        assert (server.process.returncode, output) == (code, ""), server.log
        assert not any(_runs(child) for child in children)
        assert "ready:" not in server.log
        assert "other:" not in server.log
        assert "Traceback" not in server.log


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "words"),
    [
        (["DIR/absent"], {}, 3, "no such directory"),
        (["DIR/onnx"], {}, 3, "not openvino"),
        (["a=DIR@format=onnx"], {}, 2, "not onnx"),
        (["a=DIR", "a=DIR"], {}, 2, "two models are called a"),
        (["DIR", "DIR"], {}, 2, "two models are called export"),
        (["DIR"], {"SHEARLING_API_KEY": " "}, 2, "SHEARLING_API_KEY is set and empty"),
        (["DIR", "--host", "no.such.host.invalid"], {}, 2, "no address"),
        (["DIR", "--host", "a..b"], {}, 2, "no address a..b"),
        (["DIR", "--host", f"{'a' * 64}.org"], {}, 2, "no address aaa"),
        (["DIR", "--port", "PORT"], {}, 4, "Give another --port"),
        (["DIR", "--host", "192.0.2.1"], {}, 4, "cannot listen on 192.0.2.1"),
        (["DIR", "--concurrency", "0"], {}, 2, "concurrency"),
        (["DIR", "--timeout", "nan"], {}, 2, "timeout"),
        (["DIR@NO_SUCH_PROPERTY=1", "--port", "0"], {}, 2, "OpenVINO refuses"),
    ],
)
def test_what_cannot_be_served(
    export: Path, arguments: list[str], environment: dict[str, str], code: int, words: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        written = [argument.replace("DIR", str(export)).replace("PORT", port) for argument in arguments]
        done = serve("http", *written, **environment)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_without_the_extra_the_error_says_how_to_install_it(export: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util\n"
        "real, absent = importlib.util.find_spec, ('fastapi', 'uvicorn', 'prometheus_client')\n"
        "importlib.util.find_spec = lambda name, *rest: None if name in absent else real(name, *rest)\n"
    )
    done = serve("http", export, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.returncode == 4, done.stderr
    assert INSTALL in done.stderr
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["http"]
    # What it serves needs the toolchain, which whoever gets this far has.
    assert extra.pop(0) == "shearling[toolchain]"
    assert f"pip install {' '.join(repr(requirement) for requirement in extra)}" == INSTALL


def test_importing_it_touches_no_heavy_library() -> None:
    code = (
        "import sys, serve.http.stage, serve.http.application, serve.http.server, serve.http.batcher; "
        "print({'torch', 'transformers', 'openvino', 'openvino_genai'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_it_listens_to_this_machine_alone_and_warns_elsewhere(export: Path, server: HttpServer) -> None:
    assert server.url.startswith("http://127.0.0.1:")
    assert "anybody" not in server.log
    with serving(f"tiny={export}", options=("--host", "0.0.0.0")) as open_to_all:
        assert "anybody who reaches 0.0.0.0 may use it: set SHEARLING_API_KEY" in open_to_all.log
        assert httpx.get(open_to_all.url + "/v1/models", headers={"host": "models.example"}).status_code == 200
