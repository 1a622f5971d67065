"""The process of one model; see `serve.http.protocol` for what it is told and what it answers.

A process of its own, because a step of the pipeline holds the interpreter's lock: in the server's process nobody would
be answered meanwhile. It ends when its input does.
"""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Iterator
from typing import IO

from serve.http.batcher import Batcher
from serve.http.lone_decoder import LoneDecoder
from serve.http.protocol import Command, Event, Events, Loaded, Loading
from serve.runtimes.runtime import RuntimeFacts
from serve.runtimes.speculation.settings import without_speculation
from shearling.command_line import quiet_libraries
from shearling.errors import ShearlingError

CHUNK_BYTES = 1 << 16


class LineInput:
    """Lines of a descriptor, without waiting for them unless told to.

    Args:
        descriptor: nobody else reads it.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._rest = b""

    def lines(self, *, wait: bool) -> Iterator[bytes]:
        """Every whole line that is there, and at least one if `wait`.

        Raises:
            EOFError: the other end is closed.
        """
        waits = wait
        while waits or select.select([self._descriptor], [], [], 0)[0]:
            chunk = os.read(self._descriptor, CHUNK_BYTES)
            if not chunk:
                raise EOFError
            self._rest += chunk
            waits = waits and b"\n" not in chunk
        *whole, self._rest = self._rest.split(b"\n")
        yield from whole


def main() -> None:
    """Load the model of the first line, and serve it until the input ends."""
    # The server decides what they mean; what runs is finished first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    quiet_libraries()
    # Libraries write to descriptor 1 as they please; the protocol keeps the real one for itself.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    source = LineInput(0)
    try:
        batcher = _load(next(source.lines(wait=True)), channel)
        if batcher is not None:
            _serve(batcher, source, channel)
    except (EOFError, BrokenPipeError):
        # The server is gone. What a pipeline needs to end in order, nobody waits for any more.
        os._exit(0)


def _load(line: bytes, channel: IO[str]) -> Batcher | None:
    loading = Loading.model_validate_json(line)
    try:
        batcher, facts = _load_batcher(loading)
    except ShearlingError as error:
        reply = {
            "error": type(error).__name__,
            "message": error.message,
            "where": error.where,
            "remedy": error.remedy,
        }
        _tell(channel, json.dumps(reply))
        return None
    _tell(channel, Loaded(facts=facts, chats=batcher.chats, lone=batcher.decodes_alone).model_dump_json())
    return batcher


def _load_batcher(loading: Loading) -> tuple[Batcher, RuntimeFacts]:
    from serve.runtimes.openvino import load_batching_pipeline, load_lone_pipeline
    from serve.runtimes.openvino_decoding import load_guessing

    asked, options = loading.deployment, loading.options
    plain = asked.model_copy(update={"properties": without_speculation(asked.properties)})
    # Guesses are for one text: where many are batched, their rows share the weights already.
    guessing = None if plain.properties == asked.properties else load_guessing(asked, options)
    pipeline, facts = load_batching_pipeline(plain, options, with_tokenizer=True)
    lone = load_lone_pipeline(plain, options)
    decoder = None if lone is None else LoneDecoder(lone, guessing)
    return Batcher(pipeline, plain, loading.limits, lone=decoder), facts


def _serve(batcher: Batcher, source: LineInput, channel: IO[str]) -> None:
    while True:
        events: list[Event] = []
        commands = [Command.model_validate_json(line) for line in source.lines(wait=not batcher.busy)]
        for command in commands:
            if command.add is not None:
                events.append(batcher.add(command.add))
            if command.cancel is not None:
                batcher.cancel(command.cancel)
        # Clients learn that they are accepted before a step that may take long. Of the work for one that was cancelled
        # nothing else tells.
        if commands:
            _tell_events(channel, events, batcher)
        if batcher.busy and (events := list(batcher.step())):
            _tell_events(channel, events, batcher)


def _tell_events(channel: IO[str], events: list[Event], batcher: Batcher) -> None:
    told = Events(events=tuple(events), cache_usage=batcher.cache_usage, new_tokens=batcher.new_tokens)
    _tell(channel, told.model_dump_json())


def _tell(channel: IO[str], line: str) -> None:
    channel.write(line + "\n")
    channel.flush()


if __name__ == "__main__":
    main()
