"""What may come next in a text, guessed without the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

LONGEST = 3
"""Tokens of the end of a text that are looked for in it, at most."""


class Guesser(Protocol):
    """Guesses how one text goes on."""

    def guess(self, text: Sequence[int], most: int) -> Sequence[int]:
        """Tokens that may follow.

        Args:
            text: token ids; what was given before, and more behind it.
            most: guesses, at least 1.
        """


class PromptLookup:
    """What followed the last time that a text said the same: answers repeat their question, and themselves.

    The longest end of the text that occurred before counts, and of its occurrences the latest. What is repeated without
    end is guessed so.

    Source: prompt lookup decoding, as in transformers and OpenVINO GenAI, which take the first occurrence.
    """

    def __init__(self) -> None:
        self._behind: dict[tuple[int, ...], int] = {}
        self._known = 0

    def guess(self, text: Sequence[int], most: int) -> Sequence[int]:
        """See `Guesser`."""
        for end in range(self._known + 1, len(text)):
            for length in range(1, min(LONGEST, end) + 1):
                self._behind[tuple(text[end - length : end])] = end
        self._known = len(text) - 1
        for length in range(min(LONGEST, len(text)), 0, -1):
            start = self._behind.get(tuple(text[-length:]))
            if start is not None:
                period = len(text) - start
                return [text[start + place % period] for place in range(most)]
        return []


class Rewindable(Protocol):
    """A model whose cache can be taken back to any length that it had."""

    def read(self, tokens: Sequence[int], seen: int, *, behind: int) -> Sequence[int]:
        """The likeliest tokens behind the last ones of a chunk.

        Args:
            tokens: of the chunk, at least 1.
            seen: tokens of the text that go before; what was read beyond them is forgotten.
            behind: so many of the last tokens.
        """


class DraftModel:
    """What a smaller model would say.

    Args:
        model: with the same tokens; nobody else uses it meanwhile.
    """

    def __init__(self, model: Rewindable) -> None:
        self._model = model
        self._read: list[int] = []
        self._known = 0

    def guess(self, text: Sequence[int], most: int) -> Sequence[int]:
        """See `Guesser`."""
        tokens = list(text)
        # Its own guesses that came true are read already.
        while self._known < min(len(self._read), len(text) - 1) and self._read[self._known] == text[self._known]:
            self._known += 1
        seen = self._known
        for _ in range(most):
            (token,) = self._model.read(tokens[seen:], seen, behind=1)
            seen = len(tokens)
            tokens.append(token)
        self._read = tokens[:seen]
        return tokens[len(text) :]


class GuessCount:
    """How many guesses are worth their reading: as many as were right last time, and more while all are.

    Args:
        most: at least 1.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.next = most

    def learn(self, guessed: int, agreed: int) -> None:
        """Take in how one reading went."""
        if guessed and agreed == guessed:
            self.next = min(2 * self.next, self._most)
        elif guessed:
            self.next = max(agreed, 1)
