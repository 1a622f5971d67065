"""One text at a time, a token at a time, through the pipeline that generates all of it in one call."""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING

from serve.runtimes.speculation.decoding import speculate

if TYPE_CHECKING:
    import openvino_genai

    from serve.runtimes.openvino_decoding import GuessingDecoding


class LoneDecoder:
    """Attention in the layers of a packed model makes a token in two thirds of the time; continuous batching, which
    needs OpenVINO's own, cannot have that.

    Args:
        pipeline: nobody else uses it meanwhile.
        guessing: in its place where the likeliest token is taken, if guesses were asked for.
    """

    def __init__(self, pipeline: openvino_genai.LLMPipeline, guessing: GuessingDecoding | None = None) -> None:
        self._pipeline = pipeline
        self._guessing = guessing

    def decode(self, ids: Sequence[int], config: openvino_genai.GenerationConfig) -> Generator[list[int], None, None]:
        """New tokens as they are made. Nothing is computed between two of them. To close the iterator ends the work.

        Args:
            ids: of the prompt.
            config: of one text.

        Raises:
            RuntimeError: OpenVINO's.
        """
        guessing = self._guessing
        penalized = config.frequency_penalty or config.presence_penalty
        if guessing is None or config.do_sample or penalized:
            yield from self._decode_in_pipeline(ids, config)
            return
        # Tokens that end a text are for who reads them: they close the iterator.
        yield from speculate(
            guessing.model, ids, guessing.new_guesser(), most=guessing.most, new_tokens=config.max_new_tokens
        )

    def _decode_in_pipeline(
        self, ids: Sequence[int], config: openvino_genai.GenerationConfig
    ) -> Generator[list[int], None, None]:
        """The pipeline waits, in a thread of its own, until the next token is asked for."""
        import numpy as np
        import openvino
        import openvino_genai

        told: SimpleQueue[list[int] | BaseException | None] = SimpleQueue()
        asked = threading.Semaphore(0)
        left = threading.Event()

        class Relay(openvino_genai.StreamerBase):
            def write(self, token: int | list[int]) -> openvino_genai.StreamingStatus:
                told.put(list(token) if isinstance(token, list) else [token])
                asked.acquire()
                return (
                    openvino_genai.StreamingStatus.CANCEL if left.is_set() else openvino_genai.StreamingStatus.RUNNING
                )

            def end(self) -> None:
                pass

        def generate() -> None:
            try:
                self._pipeline.generate(openvino.Tensor(np.asarray([ids], dtype=np.int64)), config, Relay())
            except BaseException as error:
                told.put(error)
            else:
                told.put(None)

        thread = threading.Thread(target=generate, name="lone-decoder", daemon=True)
        thread.start()
        try:
            while (tokens := told.get()) is not None:
                if isinstance(tokens, BaseException):
                    raise tokens
                yield tokens
                asked.release()
        finally:
            left.set()
            asked.release()
            thread.join()
