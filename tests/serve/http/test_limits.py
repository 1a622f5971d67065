"""What goes beyond a limit is refused in OpenAI's form, with the status that says why."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import openai
import pytest

from tests.support.http_server import CHAT, COMPLETIONS, HttpServer, serving

LONG = {"model": "tiny", "prompt": "Area man", "max_tokens": 200, "ignore_eos": True}
ENDLESS = {**LONG, "n": 16}


@pytest.fixture(scope="module")
def narrow(export: Path) -> Iterator[HttpServer]:
    """One place, two that wait, little time."""
    options = ("--concurrency", "1", "--queue", "2", "--max-prompt-tokens", "20", "--max-new-tokens", "220")
    with serving(f"tiny={export}", options=options) as running:
        yield running


def test_a_body_that_is_too_large(server: HttpServer) -> None:
    body = json.dumps({"model": "tiny", "prompt": "x" * 70_000}).encode()
    kind = {"content-type": "application/json"}

    def chunks() -> Iterator[bytes]:
        for _ in range(300):
            yield b" " * 8192

    with httpx.Client(base_url=server.url) as client:
        for content in (body, chunks(), b" " * 10_000_000):
            response = client.post(COMPLETIONS, content=content, headers=kind)
            assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")
        fits = json.dumps({"model": "tiny", "prompt": "hi", "max_tokens": 1}).encode().ljust(65_536)
        assert client.post(COMPLETIONS, content=fits, headers=kind).status_code == 200
        assert client.post(COMPLETIONS, content=fits + b" ", headers=kind).status_code == 413


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"prompt": [1] * 21, "max_tokens": 1}, "context_length_exceeded"),
        ({"prompt": [1] * 20, "max_tokens": 221}, "too_many_tokens"),
        ({"prompt": [[1], [1] * 21], "max_tokens": 1}, "context_length_exceeded"),
    ],
)
def test_more_tokens_than_are_made_here(narrow: HttpServer, body: dict, code: str) -> None:
    for stream in (False, True):
        response = narrow.post(COMPLETIONS, {"model": "tiny", "stream": stream, **body})
        error = response.json()["error"]
        param = "max_tokens" if code == "too_many_tokens" else "prompt"
        assert (response.status_code, error["code"], error["param"]) == (400, code, param)
    assert narrow.post(COMPLETIONS, {"model": "tiny", "prompt": [1] * 20, "max_tokens": 1}).status_code == 200


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_the_number_of_tokens_is_refused_by_the_name_that_was_given(narrow: HttpServer, field: str) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], field: 221}
    error = narrow.post(CHAT, body).json()["error"]
    assert (error["code"], error["param"]) == ("too_many_tokens", field)


def test_who_names_no_number_of_tokens_gets_what_there_is_room_for(export: Path, narrow: HttpServer) -> None:
    def ask(server: HttpServer, path: str, **what: object) -> tuple[int, str]:
        response = server.post(path, {"model": "tiny", "ignore_eos": True, **what})
        assert response.status_code == 200, response.text
        answer = response.json()
        return answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]

    assert ask(narrow, COMPLETIONS, prompt="a") == (16, "length")
    with serving(f"tiny={export}", options=("--max-new-tokens", "4")) as brief:
        assert ask(brief, COMPLETIONS, prompt="a") == (4, "length")
        assert ask(brief, CHAT, messages=[{"role": "user", "content": "a"}]) == (4, "length")
        # The context holds 256 tokens.
        assert ask(brief, COMPLETIONS, prompt=[5] * 253) == (3, "length")
        assert brief.post(COMPLETIONS, {"model": "tiny", "prompt": [5] * 256}).status_code == 400
        assert brief.post(COMPLETIONS, {"model": "tiny", "prompt": "a", "max_tokens": 5}).status_code == 400


def test_a_full_queue(narrow: HttpServer) -> None:
    with ThreadPoolExecutor(12) as pool:
        # Each fills all places: two at a time are one too many, however fast the machine is.
        responses = list(pool.map(lambda _: narrow.post(COMPLETIONS, {**LONG, "n": 3}), range(12)))
    assert {response.status_code for response in responses} == {200, 429}
    refused = next(response for response in responses if response.status_code == 429)
    assert refused.json()["error"]["code"] == "queue_full"
    assert refused.headers["retry-after"]
    assert narrow.post(COMPLETIONS, LONG).status_code == 200


def test_what_no_queue_would_hold_is_not_to_be_tried_again(narrow: HttpServer) -> None:
    for stream in (False, True):
        response = narrow.post(COMPLETIONS, {**LONG, "n": 4, "stream": stream})
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (400, "too_many_texts")
        assert "4 texts, prompts times n, and at most 3" in error["message"]
        assert "retry-after" not in response.headers
    with narrow.client() as client, pytest.raises(openai.BadRequestError):
        client.completions.create(model="tiny", prompt="a", n=4)


def test_an_answer_that_takes_too_long(export: Path) -> None:
    with serving(f"tiny={export}", options=("--timeout", "0.2", "--concurrency", "1")) as slow:
        whole = slow.post(COMPLETIONS, ENDLESS)
        assert (whole.status_code, whole.json()["error"]["code"]) == (504, "timeout")
        slow.wait_for("shearling_running_texts", 0)
        endless = {"model": "tiny", "prompt": "Area man", "max_tokens": 200, "n": 16, "stream": True}
        # On a busy machine before the first event.
        with slow.client() as client, pytest.raises(openai.APIError, match="no complete answer within"):
            list(client.completions.create(**endless, extra_body={"ignore_eos": True}))
        slow.wait_for("shearling_running_texts", 0)
        slow.wait_for("shearling_waiting_texts", 0)
        assert slow.post(COMPLETIONS, {**LONG, "max_tokens": 1}).status_code == 200


def leave_early(server: HttpServer, body: dict, headers: dict[str, str]) -> None:
    """Hang up after the first event, or before the whole answer."""
    with (
        httpx.Client(base_url=server.url, timeout=0.02) as client,
        suppress(httpx.ReadTimeout),
        client.stream("POST", COMPLETIONS, json=body, headers=headers) as response,
    ):
        next(response.iter_lines())


def test_a_client_that_leaves_frees_its_places(export: Path) -> None:
    """One text after the other is made, so that all take far longer than a client stays, on a busy machine too."""
    prompts = ["Area man"] * 8
    with serving(f"tiny={export}", options=("--concurrency", "1")) as server:
        for stream in (False, True):
            before, asked = server.metric("shearling_new_tokens_total"), 0
            for headers in ({}, {"Connection": "Upgrade", "Upgrade": "h2c"}, {}):
                leave_early(server, {**ENDLESS, "prompt": prompts, "stream": stream}, headers)
                asked += len(prompts) * 16 * 200
                server.wait_for("shearling_running_texts", 0)
                server.wait_for("shearling_waiting_texts", 0)
            assert server.metric("shearling_new_tokens_total") - before < asked / 2
        assert server.post(COMPLETIONS, {**LONG, "max_tokens": 1}).status_code == 200


def test_a_key_is_asked_for_everywhere_but_at_health(export: Path) -> None:
    with serving(f"tiny={export}", SHEARLING_API_KEY="right-key") as guarded:
        with guarded.client(api_key="right-key") as client:
            assert client.models.list().data[0].id == "tiny"
        with guarded.client(api_key="wrong") as client:
            with pytest.raises(openai.AuthenticationError) as caught:
                client.completions.create(model="tiny", prompt="a")
            assert caught.value.code == "invalid_api_key"
            with pytest.raises(openai.AuthenticationError):
                client.models.list()
        for header in ("", "right-key", "Bearer", "Bearer right-key-and-more", "Bearer right-ke", "Basic right-key"):
            for path in ("/v1/models", "/metrics", "/absent"):
                response = httpx.get(guarded.url + path, headers={"authorization": header})
                assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer"), header
        raw = httpx.Headers([(b"authorization", b"Bearer \xc3\xa9\xff")])
        assert httpx.get(guarded.url + "/metrics", headers=raw).status_code == 401
        assert httpx.post(guarded.url + CHAT, content=b"{").status_code == 401
        for headers in ({}, {"host": "models.example"}):
            assert httpx.get(guarded.url + "/health", headers=headers).json()["status"] == "ok"
        assert "right-key" not in guarded.log


def test_a_slow_reader_holds_nobody_up(export: Path) -> None:
    """It is sent what it takes, and its places are free once its texts are made."""
    # Every event names the model: together they are more than the buffers on their way hold.
    name = "/".join(["n" * 200] * 18)
    with (
        serving(f"{name}={export}", options=("--concurrency", "1")) as server,
        server.unread(COMPLETIONS, {**ENDLESS, "model": name, "stream": True}) as slow,
    ):
        while server.metric("shearling_new_tokens_total") < 16 * 200:
            time.sleep(0.02)
        server.wait_for("shearling_running_texts", 0)
        assert server.post(COMPLETIONS, {**LONG, "model": name, "max_tokens": 1}).status_code == 200
        answered = re.findall(r'requests_total{path="/v1/completions".*', httpx.get(server.url + "/metrics").text)
        # The other one alone, which came later.
        assert answered == ['requests_total{path="/v1/completions",status="200"} 1.0']
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**20)
        read = b""
        while b"data: [DONE]" not in read[-1000:]:
            piece = slow.recv(2**16)
            assert piece
            read += piece
