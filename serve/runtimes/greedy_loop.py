"""The greedy loop of runtimes that have none of their own: one token at a time, and the time of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from serve.runtimes.recording import Recording
from serve.runtimes.runtime import Decoding, Generation
from serve.runtimes.tokenization import Decoder


def greedy_loop(
    step: Callable[[Sequence[int]], int], prompt: Sequence[int], work: Decoding, *, decoder: Decoder
) -> Generation:
    """Compute tokens until there are enough, or one ends the text.

    Args:
        step: reads tokens, the prompt first and then each new one; the likeliest behind them.
        prompt: at least one token.
        work: how far to decode, and who hears of the text.
        decoder: turns the tokens into that text.
    """
    recording = Recording(work, decoder)
    while not recording.complete:
        recording.take(step(recording.tokens[-1:] or prompt))
    return recording.finish()
