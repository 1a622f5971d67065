"""The load that the documentation tells users to put on a server, for a short while."""

from __future__ import annotations

import asyncio
import json
from typing import cast

import pytest

from benchmarks import http_load
from benchmarks.http_load import MOST_GROWTH, LoadedServer, Work, _ask, load_level, main
from serve.bench.workload import Prompts
from tests.support.deployments import shared_export


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('data: {"error": {"message": "gone"}}\n\n', 'a stream that ends with data: {"error"'),
        ("", "a stream that ends with "),
        ('data: {"usage": {"completion_tokens": 3}}\n\ndata: [DONE]\n\n', None),
    ],
)
def test_a_stream_without_its_end_is_a_request_that_was_lost(body: str, said: str | None) -> None:
    found = asyncio.run(_ask(Answering(body), [1, 2], 3, stream=True))  # type: ignore[arg-type]  # one method of a session
    assert found == said if said is None else found is not None and found.startswith(said)


class Answering:
    """A connection on which everything is answered with one body."""

    status = 200

    def __init__(self, body: str) -> None:
        self.body = body

    def post(self, path: str, *, json: object) -> Answering:
        return self

    async def __aenter__(self) -> Answering:
        return self

    async def __aexit__(self, *error: object) -> None:
        pass

    async def text(self) -> str:
        return self.body


def test_throughput_is_counted_from_the_end_of_an_answer_to_that_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    class Server:
        url, runs, resident_bytes = "http://none", True, 0

    class SamePrompt:
        def draw(self) -> tuple[list[list[list[int]]], int]:
            return [[[1, 2]]], 10

    async def answer(*_: object, **__: object) -> None:
        await asyncio.sleep(0.13)

    monkeypatch.setattr(http_load, "_ask", answer)
    server, prompts = cast(LoadedServer, Server()), cast(Prompts, SamePrompt())
    work = Work(prompt_tokens=2, new_tokens=10)
    found = load_level(server, prompts, work, clients=1, seconds=0.5)
    # Three whole answers in half a second, and a part of the fourth.
    assert found.tokens_per_s == pytest.approx(10 / 0.13, rel=0.1)
    Server.runs = False
    assert load_level(server, prompts, work, clients=1, seconds=60).answered == 1


@pytest.mark.slow
def test_no_request_is_lost_and_memory_does_not_grow(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    export = shared_export(tmp_path_factory)
    options = ["--minutes", "0.2", "--prompt-tokens", "32", "--max-new-tokens", "48"]
    code = main([str(export), *options, "--rounds", "1", "--threads", "1", "--precision", "fp32"])
    told = json.loads(capsys.readouterr().out)
    assert (code, told["lost"]) == (0, 0), told
    assert [level["clients"] for level in told["levels"]] == [1, 8, 32]
    assert all(level["answered"] > 5 * level["clients"] for level in told["levels"])
    assert told["memory_growth"] < MOST_GROWTH
    assert set(told["ratio_to_serve_load"]) == {"1", "8", "32"}
