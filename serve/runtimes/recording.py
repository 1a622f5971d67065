"""The tokens of one generation as they come, and the time of each, for runtimes that do not measure themselves."""

from __future__ import annotations

import time
from itertools import pairwise

from serve.runtimes.runtime import Decoding, Generation
from serve.runtimes.tokenization import Decoder, TextStream


class Recording:
    """Starts its clock when it is made.

    Args:
        work: how far to decode, and who hears of the text.
        decoder: turns the tokens into that text.
    """

    def __init__(self, work: Decoding, decoder: Decoder) -> None:
        self.tokens: list[int] = []
        self._others: list[list[int]] = []
        self._times_s: list[float] = []
        self._ended = False
        self._work = work
        self._stream = TextStream(decoder, work.on_text) if work.on_text else None
        self._started_s = time.perf_counter()

    @property
    def complete(self) -> bool:
        """Whether there are enough tokens, or one has ended the text."""
        return self._ended or len(self.tokens) == self._work.max_new_tokens

    def take(self, token: int, *others: int) -> None:
        """One more token, and those of the other rows of a batch; such as ends the text is computed and timed, but not
        part of it.
        """
        self._times_s.append(time.perf_counter())
        if token in self._work.end_ids:
            self._ended = True
            return
        self.tokens.append(token)
        self._others.append(list(others))
        if self._stream:
            self._stream.push(token)

    def finish(self) -> Generation:
        """Show what is left of the text, and stop the clock."""
        if self._stream:
            self._stream.finish()
        total_s = time.perf_counter() - self._started_s
        return Generation(
            token_ids=tuple(self.tokens),
            started_s=self._started_s,
            ttft_s=self._times_s[0] - self._started_s,
            gaps_s=tuple(later - earlier for earlier, later in pairwise(self._times_s)),
            total_s=total_s,
            other_rows=tuple(zip(*self._others, strict=True)),
        )
