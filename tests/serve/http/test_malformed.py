"""Two hundred bodies that are wrong, each in a way of its own: all are the client's error, none stops the server."""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from serve.http.limits import Limits
from serve.http.reading import read_body
from serve.http.refusal import Refusal
from serve.http.request_body import ChatBody, CompletionBody
from tests.support.documents import ROOT
from tests.support.http_server import CHAT, COMPLETIONS, HttpServer

GOOD: dict[str, dict[str, Any]] = {
    CHAT: {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "temperature": 0},
    COMPLETIONS: {"model": "tiny", "prompt": "hi", "max_tokens": 2, "temperature": 0},
}
WRONG_VALUES: dict[str, list[Any]] = {
    "model": [None, 1, [], {}, "", "absent", "../tiny", "x" * 10_000],
    "max_tokens": [0, -1, 1.5, "2", True, [2], {}, 2**31, 10**30, 257, 4097],
    "temperature": [-0.1, 2.1, "1", True, [], 1e300],
    "top_p": [-0.1, 1.1, "0.5", False],
    "top_k": [0, -1, 1.5, "1", 2**31],
    "n": [0, -1, 17, 1.5, "2", True],
    "stop": ["", [""], [1], ["a"] * 5, {}, 3, [["a"]], "x" * 1001, [None]],
    "seed": ["1", 1.5, 2**63, True, []],
    "frequency_penalty": [-2.1, 2.1, "0"],
    "presence_penalty": [-2.1, 2.1, "0"],
    "stream": ["true", 1, []],
    "stream_options": [{"include_usage": True}, {"include_usage": "yes"}, {"other": 1}, 1],
    "ignore_eos": ["true", 1],
    "user": [1, []],
    "logit_bias": [{"50256": -100}, [], 1],
    "no_such_field": [False, 0, "", [], {}, 1],
}
WRONG_OF_A_CHAT: dict[str, list[Any]] = {
    "messages": [
        None,
        "hi",
        [],
        {},
        [1],
        ["hi"],
        [[]],
        [{}],
        [{"role": "user"}],
        [{"content": "hi"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": 1}],
        [{"role": "user", "content": {"type": "text", "text": "hi"}}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": ["hi"]}],
        [{"role": "tool", "content": "hi", "tool_call_id": "1"}],
        [{"role": "nobody", "content": "hi"}],
        [{"role": "USER", "content": "hi"}],
        [{"role": "user", "content": "hi", "extra": 1}],
        [{"role": "assistant", "content": "hi", "tool_calls": [{"id": "1"}]}],
        [{"role": "user", "content": "word " * 2000}],
        [{"role": "user", "content": "hi"}] * 1025,
    ],
    "max_completion_tokens": [0, "1", 3],
    "tools": [[{"type": "function", "function": {"name": "f"}}], {}],
    "tool_choice": ["required", {"type": "function"}],
    "response_format": [{"type": "json_object"}, "text", {"type": "json_schema", "json_schema": {}}],
    "logprobs": [True, 1],
    "top_logprobs": [3],
    "modalities": [["audio"], ["text", "audio"], []],
    "store": [True],
    "service_tier": ["flex"],
    "metadata": [{"a": 1}, []],
    "reasoning_effort": ["high"],
    "functions": [[]],
    "prompt": ["hi"],
}
WRONG_OF_A_COMPLETION: dict[str, list[Any]] = {
    "prompt": [
        None,
        "",
        1,
        [],
        {},
        [""],
        [[]],
        [None],
        [1.5],
        [True],
        [-1],
        [400],
        [2**31],
        [2**70],
        [1, "a"],
        ["a", 1],
        [[1], 2],
        [["a"]],
        [[[1]]],
        ["a"] * 17,
        "word " * 2000,
        [1] * 300,
    ],
    "best_of": [2, "1"],
    "echo": [True],
    "logprobs": [0, 1],
    "suffix": ["end"],
    "messages": [[{"role": "user", "content": "hi"}]],
}
UNKNOWN = {"top_logprobs", "reasoning_effort", "functions", "function_call", "prediction", "audio", "guided_json"}
ERROR = {"message", "type", "param", "code"}
NOT_JSON = (
    b"",
    b" ",
    b"{",
    b"}",
    b"[]",
    b"null",
    b"1",
    b'"text"',
    b"\x00",
    b"\xff\xfe",
    b"{'model': 'tiny'}",
    b'{"model": "tiny",}',
    b'{"model": "tiny"} {}',
    b'{"temperature": NaN}',
    b'{"temperature": Infinity}',
    b'{"temperature": 1e999}',
    b'{"seed": ' + b"9" * 5000 + b"}",
    b'{"model": "tiny", "model": "tiny"}',
    b"[" * 20_000,
    b'{"a":' * 20_000,
    b'{"model": "\\ud800", "prompt": "hi"}',
    b'{"model": "tiny", "prompt": "\\udc00 lone"}',
    b'{"model": "tiny", "prompt": "\xff"}',
    b"model=tiny&prompt=hi",
    b"<request/>",
)


def corpus() -> Iterator[tuple[str, bytes]]:
    for path, also in ((CHAT, WRONG_OF_A_CHAT), (COMPLETIONS, WRONG_OF_A_COMPLETION)):
        for raw in NOT_JSON:
            yield path, raw
        for field in GOOD[path].keys() - {"max_tokens", "temperature"}:
            yield path, json.dumps({name: value for name, value in GOOD[path].items() if name != field}).encode()
        for field, value in itertools.chain.from_iterable(
            ((name, value) for value in values) for name, values in {**WRONG_VALUES, **also}.items()
        ):
            body = copy.deepcopy(GOOD[path])
            body[field] = value
            yield path, json.dumps(body).encode()


def read(body: dict[str, Any], body_type: type[ChatBody | CompletionBody]) -> ChatBody | CompletionBody:
    """As the routes read it."""
    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", b"application/json")]}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}

    return asyncio.run(read_body(Request(scope, receive), body_type, Limits()))


def test_two_hundred_malformed_bodies_are_the_clients_error(server: HttpServer) -> None:
    bodies = set(corpus())
    assert len(bodies) >= 200
    answered_otherwise = []
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for path, raw in sorted(bodies):
            response = client.post(path, content=raw, headers={"content-type": "application/json"})
            told = response.json() if response.status_code != 200 else {}
            if not 400 <= response.status_code < 500 or set(told["error"]) != ERROR:
                answered_otherwise.append((response.status_code, path, raw[:200], response.text[:200]))
    assert answered_otherwise == []
    for path, body in GOOD.items():
        assert server.post(path, body).status_code == 200
    assert server.metric("shearling_running_texts") == 0


def test_wrong_requests_around_a_body(server: HttpServer) -> None:
    good = json.dumps(GOOD[CHAT]).encode()
    with httpx.Client(base_url=server.url) as client:
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
            assert client.post(CHAT, content=good, headers={"content-type": kind}).status_code == 415
        with_charset = client.post(CHAT, content=good, headers={"content-type": "Application/JSON; charset=utf-8"})
        assert with_charset.status_code == 200
        for method, path, status in (
            ("GET", CHAT, 405),
            ("PUT", "/metrics", 405),
            ("DELETE", "/v1/models/tiny", 405),
            ("POST", "/v1/embeddings", 404),
            ("GET", "/", 404),
            ("GET", "/docs", 404),
            ("GET", "/openapi.json", 404),
            ("POST", "/health", 405),
        ):
            response = client.request(method, path)
            assert (response.status_code, set(response.json()["error"])) == (status, ERROR), path


@pytest.mark.parametrize(("path", "body_type"), [(CHAT, ChatBody), (COMPLETIONS, CompletionBody)])
def test_null_is_as_good_as_absent(path: str, body_type: type[ChatBody | CompletionBody]) -> None:
    """Wrappers that pass all of their options on send this, those of other servers and endpoints included."""
    optional = (ChatBody.model_fields.keys() | CompletionBody.model_fields.keys() | UNKNOWN) - GOOD[path].keys()
    spoken: dict[str, Any] = {**GOOD[path], **dict.fromkeys(optional - {"prompt", "messages"})}
    if path == CHAT:
        spoken["messages"] = [{**message, "tool_call_id": None, "audio": None} for message in spoken["messages"]]
    assert read(spoken, body_type) == read(GOOD[path], body_type)
    for required in {"model", "prompt", "messages"} & GOOD[path].keys():
        with pytest.raises(Refusal, match=f"{required}: Field required"):
            read({**GOOD[path], required: None}, body_type)


def test_a_message_that_is_wrong_is_complained_of_once() -> None:
    for wrong in ({"extra": 1}, {"role": "nobody"}):
        with pytest.raises(Refusal) as caught:
            read({**GOOD[CHAT], "messages": [{**GOOD[CHAT]["messages"][0], **wrong}]}, ChatBody)
        assert caught.value.message.count("messages") == 1, caught.value.message
    with pytest.raises(Refusal, match="messages: a chat has at least one message"):
        read({**GOOD[CHAT], "messages": []}, ChatBody)


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        (COMPLETIONS, "prompt", [-1] * 150_000),
        (COMPLETIONS, "stop", [1] * 150_000),
        (CHAT, "messages", [1] * 150_000),
        (CHAT, "messages", [{"role": "user", "content": [1] * 150_000}]),
    ],
)
def test_a_list_of_many_wrong_items_is_complained_of_once(path: str, field: str, value: list[Any]) -> None:
    """Each would take time of all others, whose texts wait for the answer, and megabytes of it."""
    with pytest.raises(Refusal) as caught:
        read({**GOOD[path], field: value}, ChatBody if path == CHAT else CompletionBody)
    assert caught.value.param == field
    assert len(caught.value.message) < 1000


def test_the_page_names_every_field() -> None:
    page = (ROOT / "docs" / "http.md").read_text(encoding="utf-8")
    fields = ChatBody.model_fields.keys() | CompletionBody.model_fields.keys()
    assert [field for field in sorted(fields) if f"`{field}`" not in page and f"`{field}." not in page] == []


def test_fields_that_change_nothing_are_taken(server: HttpServer) -> None:
    plain = {path: server.post(path, body).json()["choices"] for path, body in GOOD.items()}
    harmless: dict[str, dict[str, Any]] = {
        CHAT: {
            "tools": [],
            "tool_choice": "none",
            "parallel_tool_calls": True,
            "response_format": {"type": "text"},
            "modalities": ["text"],
            "logprobs": False,
            "metadata": {"a": "b"},
            "store": False,
            "service_tier": "auto",
            "safety_identifier": "x",
            "prompt_cache_key": "x",
        },
        COMPLETIONS: {"best_of": 1, "echo": False, "logprobs": None, "suffix": None},
    }
    both = {"user": "someone", "logit_bias": {}, "n": 1, "stop": None, "stream": False, "stream_options": None}
    for path, body in GOOD.items():
        response = server.post(path, {**body, **both, **harmless[path]})
        assert response.status_code == 200, response.text
        assert response.json()["choices"] == plain[path]
