"""`python -m serve http` under load: is every request answered, does memory grow, and what does HTTP cost beside
`serve load`?

    python -m benchmarks.http_load runs/demo/sparse-int8 --minutes 10            # 1, 8 and 32 clients
    python -m benchmarks.http_load runs/demo/sparse-int8 --minutes 10 --rounds 3 # and `serve load`, by turns

A client asks, waits for its answer, and asks again: random token ids, greedy, end tokens ignored, the work of
`serve load`. Half of the clients of each level stream. As there, their first answers are of different lengths, and
throughput counts from the last of these on: what ended in that time. Before anything is counted the server has had
prompts of every length and every level twice for a while, so that caches have their size. Exit code 1: an answer was
lost, memory grew, or a run of `serve load` failed; that round has no ratio.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import psutil
import uvloop

from benchmarks.command import command
from serve.bench.statistics import percentile
from serve.bench.workload import Prompts, make_workload
from serve.runtimes.deployment import find_deployment
from shearling.console import log as console
from shearling.errors import ShearlingError
from shearling.target import parse_target

NAME = "measured"
START_S, REQUEST_S = 600.0, 600.0
STEP_TOKENS = 256
"""Of GenAI's scheduler: a step never has more."""
WARM_UP_S = 30.0
"""For each level, twice, before memory is looked at: the first time with many clients leaves one client larger."""
MOST_GROWTH = 0.05
"""Of resident memory, from the end of the warm-up to the end of all: more is called growth."""


@dataclass(frozen=True)
class Work:
    """The same for every request.

    Attributes:
        prompt_tokens: random ids.
        new_tokens: exactly so many.
        seed: of the prompts.
    """

    prompt_tokens: int
    new_tokens: int
    seed: int = 0


@dataclass(frozen=True)
class ClientLevel:
    """So many clients at once.

    Attributes:
        answered: requests with all their tokens.
        lost: other ends, each in words.
        seconds: that were asked for.
        tokens_per_s: of the answers that ended in them, until the last of these ended.
        latency_s: p50 and p99 of a whole answer that began after the first ones.
        resident_bytes: of the server and its models, at the end.
    """

    clients: int
    answered: int
    lost: tuple[str, ...]
    seconds: float
    tokens_per_s: float
    latency_s: dict[str, float]
    resident_bytes: int


class LoadedServer:
    """A server that runs; see `running_server`."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self._process = psutil.Process(process.pid)
        self.url = url

    @property
    def runs(self) -> bool:
        """Whether it can answer still."""
        return self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE

    @property
    def resident_bytes(self) -> int:
        """Of it and its children."""
        return sum(int(part.memory_info().rss) for part in (self._process, *self._process.children(recursive=True)))


@contextmanager
def running_server(model: str, options: Sequence[str]) -> Iterator[LoadedServer]:
    """`python -m serve http` on a free port, until the end of the context."""
    with tempfile.NamedTemporaryFile("r", suffix=".log") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "serve", "http", f"{NAME}={model}", "--port", "0", *options],
            stdout=subprocess.DEVNULL,
            stderr=os.open(log.name, os.O_WRONLY | os.O_APPEND),
            text=True,
        )
        try:
            yield LoadedServer(process, _wait_until_ready(process, Path(log.name)))
        finally:
            process.terminate()
            process.wait()


def _wait_until_ready(process: subprocess.Popen[str], log: Path) -> str:
    deadline_s = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline_s:
        found = re.search(r"ready: (\S+)", log.read_text(encoding="utf-8"))
        if found:
            return found[1]
        time.sleep(0.1)
    raise SystemExit(log.read_text(encoding="utf-8"))


def load_level(server: LoadedServer, prompts: Prompts, work: Work, *, clients: int, seconds: float) -> ClientLevel:
    """Let clients ask for so long; each finishes its last request."""
    lost: list[str] = []
    spans: list[tuple[float, float]] = []
    rising, counted_from_s = clients, 0.0

    async def ask(connection: aiohttp.ClientSession, number: int, new_tokens: int) -> None:
        (rows,), _ = prompts.draw()
        started_s = time.perf_counter()
        failure = await _ask(connection, rows[0], new_tokens, stream=number % 2 == 1)
        if failure is None:
            spans.append((started_s, time.perf_counter()))
        else:
            lost.append(failure)

    async def be_client(connection: aiohttp.ClientSession, number: int) -> None:
        nonlocal rising, counted_from_s
        await ask(connection, number, -(-work.new_tokens * (number + 1) // clients))
        rising -= 1
        if not rising:
            counted_from_s = time.perf_counter()
        while server.runs and (rising or time.perf_counter() < counted_from_s + seconds):
            await ask(connection, number, work.new_tokens)

    async def be_clients() -> None:
        async with _connection(server, clients=clients) as connection:
            await asyncio.gather(*(be_client(connection, number) for number in range(clients)))

    _run(be_clients())
    ended_s = [end_s for _, end_s in spans if counted_from_s < end_s <= counted_from_s + seconds]
    latencies_s = [end_s - start_s for start_s, end_s in spans if start_s >= counted_from_s]
    return ClientLevel(
        clients=clients,
        answered=len(spans),
        lost=tuple(lost),
        seconds=seconds,
        # From the end of an answer to that of another: a part of one would count for nothing, but its time would.
        tokens_per_s=len(ended_s) * work.new_tokens / (max(ended_s) - counted_from_s) if ended_s else 0.0,
        latency_s={f"p{share}": percentile(latencies_s, share / 100) for share in (50, 99)} if latencies_s else {},
        resident_bytes=server.resident_bytes,
    )


def meet_all_steps(server: LoadedServer, prompts: Prompts, *, most_tokens: int) -> None:
    """Ask for a prompt of every length: OpenVINO compiles for each number of tokens in a step, and keeps that."""

    async def ask_in_turn() -> None:
        async with _connection(server, clients=1) as connection:
            for length in range(1, most_tokens + 1):
                prompt: list[int] = []
                while len(prompt) < length:
                    prompt += prompts.draw()[0][0][0]
                await _ask(connection, prompt[:length], 1, stream=False)

    _run(ask_in_turn())


def _connection(server: LoadedServer, *, clients: int) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        server.url.rstrip("/") + "/",
        timeout=aiohttp.ClientTimeout(total=REQUEST_S),
        connector=aiohttp.TCPConnector(limit=clients),
    )


def _run(work: Coroutine[Any, Any, None]) -> None:
    # What the clients take of the processors, the server lacks.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)


async def _ask(
    connection: aiohttp.ClientSession, prompt: Sequence[int], new_tokens: int, *, stream: bool
) -> str | None:
    """None for a whole answer, else what came instead."""
    body = {
        "model": NAME,
        "prompt": list(prompt),
        "max_tokens": new_tokens,
        "ignore_eos": True,
        "temperature": 0,
        **({"stream": True, "stream_options": {"include_usage": True}} if stream else {}),
    }
    try:
        async with connection.post("completions", json=body) as response:
            text = await response.text()
    except (aiohttp.ClientError, TimeoutError) as error:
        return f"{type(error).__name__}: {error}"
    if response.status != 200:
        return f"{response.status}: {text[:200]}"
    if stream:
        events = text.rstrip("\n").split("\n\n")
        if events[-1] != "data: [DONE]" or len(events) < 2:
            return f"a stream that ends with {events[-1][:200]}"
        usage = events[-2]
        told = json.loads(usage.removeprefix("data: "))
    else:
        told = json.loads(text)
    made = told["usage"]["completion_tokens"]
    return None if made == new_tokens else f"{made} tokens"


def batching_alone(model: str, levels: Sequence[int], work: Work, options: Sequence[str]) -> dict[int, float]:
    """Tokens per second of `serve load`, by level.

    Raises:
        ShearlingError: it failed.
    """
    requests = max(8, 4 * max(levels))
    command = [
        *(sys.executable, "-m", "serve", "load", model, "--concurrency", ",".join(map(str, levels))),
        *("--requests", str(requests), "--prompt-tokens", str(work.prompt_tokens)),
        *("--max-new-tokens", str(work.new_tokens), "--json", *options),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise ShearlingError(f"`serve load`: exit code {done.returncode}\n{done.stderr}", where=model)
    return {level["concurrency"]: level["tokens_per_s"] for level in json.loads(done.stdout)["levels"]}


@command
def main(argv: list[str] | None = None) -> int:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.http_load", description=(__doc__ or "").partition("\n\n")[0]
    )
    parser.add_argument("model", help="an export with OpenVINO, or DIR@PROPERTY=VALUE,...")
    parser.add_argument("--clients", default="1,8,32", help="levels, separated by commas")
    parser.add_argument("--minutes", type=float, default=10.0, help="for all levels of all rounds together")
    parser.add_argument("--rounds", type=int, default=0, help="also run `serve load`, by turns, so often")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--precision", default="default")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    levels = sorted({int(level) for level in options.clients.split(",")})
    work = Work(options.prompt_tokens, options.max_new_tokens, options.seed)
    shared = ["--precision", options.precision]
    shared += ["--threads", str(options.threads)] if options.threads else []
    deployment = find_deployment(parse_target(options.model).only("openvino"))
    prompts = Prompts([deployment], make_workload(work.prompt_tokens, work.new_tokens, seed=work.seed))
    rounds = max(1, options.rounds)
    seconds = 60 * options.minutes / rounds / len(levels)
    measured: list[ClientLevel] = []
    ratios: dict[int, list[float]] = {level: [] for level in levels}
    failures: list[str] = []
    with running_server(options.model, [*shared, "--concurrency", str(max(levels))]) as server:
        meet_all_steps(server, prompts, most_tokens=min(STEP_TOKENS, (deployment.context_tokens or STEP_TOKENS) - 2))
        for level in levels * 2:
            load_level(server, prompts, work, clients=level, seconds=min(WARM_UP_S, seconds) / 2)
        before_bytes = server.resident_bytes
        for _ in range(rounds):
            alone: dict[int, float] = {}
            try:
                alone = batching_alone(options.model, levels, work, shared) if options.rounds else {}
            except ShearlingError as error:
                failures.append(str(error))
                console.print(str(error), style="red", markup=False)
            for level in levels:
                measured.append(load_level(server, prompts, work, clients=level, seconds=seconds))
                if alone:
                    ratios[level].append(measured[-1].tokens_per_s / alone[level])
        growth = server.resident_bytes / before_bytes - 1
    lost = sum(len(level.lost) for level in measured)
    told = {
        "model": options.model,
        **asdict(work),
        "answered": sum(level.answered for level in measured),
        "lost": lost,
        "failures": failures,
        "resident_bytes_before": before_bytes,
        "memory_growth": growth,
        "levels": [asdict(level) for level in measured],
        "ratio_to_serve_load": {level: median(values) for level, values in ratios.items() if values},
    }
    sys.stdout.write(json.dumps(told, indent=2) + "\n")
    return int(lost > 0 or growth > MOST_GROWTH or bool(failures))


if __name__ == "__main__":
    sys.exit(main())
