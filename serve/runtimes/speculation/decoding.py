"""Greedy decoding with guesses: the text is the model's own, and only the number of readings changes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence

from serve.runtimes.runtime import Decoding, Generation
from serve.runtimes.speculation.guesses import GuessCount, Guesser, Rewindable
from serve.runtimes.tokenization import Decoder, TextStream


def speculate(
    model: Rewindable, prompt: Sequence[int], guesser: Guesser, *, most: int, new_tokens: int
) -> Iterator[list[int]]:
    """New tokens, as many at a time as one reading gave; the first comes alone.

    Args:
        model: nobody else uses it meanwhile.
        prompt: token ids, at least 1.
        guesser: of this text.
        most: guesses for one reading, at least 1.
        new_tokens: at least 1.
    """
    text, seen, count = list(prompt), 0, GuessCount(most)
    while (left := new_tokens - (len(text) - len(prompt))) > 0:
        most_now = min(count.next, left - 1) if seen else 0
        guesses = list(guesser.guess(text, most_now)) if most_now else []
        likeliest = model.read([*text[seen:], *guesses], seen, behind=len(guesses) + 1)
        agreed = next((place for place, guess in enumerate(guesses) if guess != likeliest[place]), len(guesses))
        count.learn(len(guesses), agreed)
        seen = len(text) + agreed
        text += (new := [*guesses[:agreed], likeliest[agreed]])
        yield new


def decode_with_guesses(
    model: Rewindable, prompt: Sequence[int], guesser: Guesser, *, most: int, work: Decoding, decoder: Decoder
) -> Generation:
    """The same as a `Generation`. Tokens of one reading come at once; its time is spread over them, as GenAI does.

    Args:
        model: nobody else uses it meanwhile.
        prompt: token ids, at least 1.
        guesser: of this text.
        most: guesses for one reading, at least 1.
        work: how far.
        decoder: of the text that is told.
    """
    stream = None if work.on_text is None else TextStream(decoder, work.on_text)
    made: list[int] = []
    times_s: list[float] = []
    started_s = last_s = time.perf_counter()
    for tokens in speculate(model, prompt, guesser, most=most, new_tokens=work.max_new_tokens):
        now_s = time.perf_counter()
        ended = next((place for place, token in enumerate(tokens) if token in work.end_ids), None)
        told = tokens[:ended]
        made += told
        # What ends a text is computed, too.
        computed = len(told) + (ended is not None)
        times_s += [last_s + (now_s - last_s) * place / computed for place in range(1, computed + 1)]
        last_s = now_s
        if stream is not None and told:
            stream.push(*told)
        if ended is not None:
            break
    if stream is not None:
        stream.finish()
    return Generation(
        token_ids=tuple(made),
        started_s=started_s,
        ttft_s=times_s[0] - started_s,
        gaps_s=tuple(later - earlier for earlier, later in itertools.pairwise(times_s)),
        total_s=time.perf_counter() - started_s,
    )
