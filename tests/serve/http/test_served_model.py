"""The server's side of a model's process, without HTTP."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from serve.http.limits import Limits
from serve.http.protocol import Events, TextJob
from serve.http.refusal import Refusal
from serve.http.served_model import END_S, ServedModel
from serve.runtimes.deployment import find_deployment
from serve.runtimes.runtime import RunOptions
from shearling.errors import ShearlingError
from shearling.target import Target
from tests.support.http_jobs import GREEDY

OPTIONS = RunOptions(precision="fp32", threads=1)


class Overheard(ServedModel):
    """Keeps what the process says."""

    def __init__(self, export: Path, limits: Limits) -> None:
        deployment = find_deployment(Target(export).only("openvino"))
        super().__init__("tiny", deployment, options=OPTIONS, limits=limits)
        self.lines: list[bytes] = []

    async def _hear(self) -> bytes:
        self.lines.append(line := await super()._hear())
        return line

    def jobs(self, count: int, tokens: int, *, streamed: bool = True) -> list[TextJob]:
        return [
            TextJob(
                id=self.next_id(), prompt="Area", max_new_tokens=tokens, sampling=GREEDY, stops=(), streamed=streamed
            )
            for _ in range(count)
        ]


def test_one_that_still_loads_is_ended_at_once(export: Path) -> None:
    async def leave_early() -> float:
        model = Overheard(export, Limits(concurrency=1))
        loading = asyncio.create_task(model.start())
        while model._process is None:
            await asyncio.sleep(0.01)
        started_s = time.monotonic()
        await model.stop()
        ended_s = time.monotonic()
        with pytest.raises(ShearlingError):
            await loading
        return ended_s - started_s

    assert asyncio.run(leave_early()) < END_S / 2


def test_what_is_left_is_cancelled_in_the_process(export: Path) -> None:
    async def leave_and_stay() -> Overheard:
        model = Overheard(export, Limits(concurrency=1))
        await model.start()
        try:
            with model.run(model.jobs(20, 200)) as flight:
                await flight.some()
            assert (model.running, model.waiting) == (0, 0)
            with model.run(model.jobs(1, 50)) as flight:
                while not flight.ended:
                    await flight.some()
        finally:
            await model.stop()
        return model

    lines = asyncio.run(leave_and_stay()).lines
    events = [event for line in lines[1:] if line for event in Events.model_validate_json(line).events]
    assert [event.job for event in events if event.is_last] == [21]
    assert sum(event.kind == "text" for event in events) < 400


@pytest.mark.parametrize("streamed", [False, True])
def test_work_for_those_who_left_is_told(export: Path, streamed: bool) -> None:
    async def leave() -> None:
        model = Overheard(export, Limits())
        await model.start()
        try:
            with model.run(model.jobs(1, 200, streamed=streamed)) as flight:
                while not any(event.kind == "started" for event in await flight.some()):
                    pass
            # Nothing else is asked for.
            async with asyncio.timeout(60):
                while model.new_tokens == 0:
                    await asyncio.sleep(0.01)
        finally:
            await model.stop()

    asyncio.run(leave())


def test_no_more_than_fits_and_nothing_after_the_end(export: Path) -> None:
    async def fill() -> None:
        model = Overheard(export, Limits(concurrency=2, queue=1))
        await model.start()
        try:
            with model.run(model.jobs(3, 200)), pytest.raises(Refusal) as full, model.run(model.jobs(1, 1)):
                raise AssertionError
            assert full.value.status == 429
            with model.run(model.jobs(3, 2)) as flight:
                while not flight.ended:
                    await flight.some()
        finally:
            await model.stop()
        with pytest.raises(Refusal) as down, model.run(model.jobs(1, 1)):
            raise AssertionError
        assert (down.value.status, down.value.code) == (503, "model_down")

    asyncio.run(fill())


def test_it_is_ours_whatever_lies_in_the_directory(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "serve").mkdir()
    (tmp_path / "serve" / "__init__.py").write_text("raise SystemExit('this is another package')")
    monkeypatch.chdir(tmp_path)

    async def start() -> bool:
        model = Overheard(export, Limits(concurrency=1))
        await model.start()
        await model.stop()
        return bool(model.lines)

    assert asyncio.run(start())


class CutShort(Overheard):
    """Its process is killed while it writes."""

    async def _hear(self) -> bytes:
        line = await super()._hear()
        # The first line tells that it has loaded.
        return line if len(self.lines) == 1 else line[:-9]


def test_half_a_line_of_a_killed_process_ends_it_for_everybody(export: Path) -> None:
    async def ask() -> str | None:
        model = CutShort(export, Limits(concurrency=1))
        await model.start()
        try:
            with model.run(model.jobs(1, 50)) as flight:
                async with asyncio.timeout(60):
                    events = await flight.some()
            assert not model.alive
        finally:
            await model.stop()
        return next(event.code for event in events if event.kind == "failed")

    assert asyncio.run(ask()) is not None
