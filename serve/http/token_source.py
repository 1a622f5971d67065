"""Where the tokens of a text come from: continuous batching, or a decoder that it has to itself."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from openvino_genai import GenerationHandle


class TokenSource(Protocol):
    """Of one text.

    Attributes:
        ended: whether none follow those that `read` gave.
        failed: whether it has ended too early, since there is no room.
    """

    ended: bool
    failed: bool

    def read(self, *, wanted: bool) -> Iterator[int]:
        """New tokens; where they are not wanted now, perhaps none before the last one is there."""

    def close(self) -> int:
        """Make no more; returns how many were made and not read."""


class BatchedTokens:
    """Made by the steps of the pipeline.

    Args:
        handle: nobody else reads it.
    """

    def __init__(self, handle: GenerationHandle) -> None:
        self._handle = handle
        self.ended = self.failed = False

    def read(self, *, wanted: bool) -> Iterator[int]:
        """See `TokenSource`: what nobody waits for is read at the end, since each step of many texts counts."""
        from openvino_genai import GenerationStatus

        # Before the tokens: a text that ends between the two is collected with the next step.
        status = self._handle.get_status()
        while (wanted or status != GenerationStatus.RUNNING) and self._handle.can_read():
            for output in self._handle.read().values():
                yield from output.generated_ids
        self.ended = status != GenerationStatus.RUNNING
        self.failed = status not in (GenerationStatus.RUNNING, GenerationStatus.FINISHED)

    def close(self) -> int:
        """See `TokenSource`; the next step of the pipeline frees its cache."""
        unread = sum(1 for _ in self.read(wanted=True))
        if not self.ended:
            self._handle.cancel()
        return unread


class LoneTokens:
    """Made when they are read.

    Args:
        tokens: see `LoneDecoder.decode`.
        most: that are made.
    """

    def __init__(self, tokens: Generator[list[int], None, None], *, most: int) -> None:
        self._tokens = tokens
        self._left = most
        self.ended = self.failed = False

    def read(self, *, wanted: bool) -> Iterator[int]:
        """See `TokenSource`."""
        tokens = next(self._tokens, None)
        self._left -= len(tokens or ())
        self.ended = tokens is None or self._left <= 0
        yield from tokens or ()

    def close(self) -> int:
        """See `TokenSource`."""
        self._tokens.close()
        return 0
