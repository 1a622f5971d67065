"""Reads tokens with llama.cpp and answers with logits: runs in the Python that has llama_cpp, which may have nothing of
this project.

    python -P llama_cpp_worker.py FILE.gguf THREADS FLASH_ATTENTION

The last is YES or NO. The worker says first what it loaded, one line of JSON: {"vocabulary": ..., "most_rows": ...}, or
{"error": ...}. After that every line on stdin is a request, {"fresh": bool, "rows": [[token, ...], ...], "wanted":
[count, ...]}: what follows in each row, and behind how many of its last tokens the logits are asked for. The answer is
the number of those tokens, 8 bytes, and their logits row by row, float32.

Everything is in the byte order of the machine. What cannot be done ends the process; its last line on stderr says why.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Sequence
from typing import IO, Any

import llama_cpp
import numpy as np

BATCH_TOKENS = 512
"""Read by one call: activations stay in the cache, and the logits of so many tokens fit in memory."""

FEWEST_CELLS, FEWEST_ROWS = 2048, 64
"""What a context is made for at least."""

GGML_LOG_LEVEL_ERROR = 4


@llama_cpp.llama_log_callback
def _log(level: int, text: bytes, _: Any) -> None:
    if level == GGML_LOG_LEVEL_ERROR:
        sys.stderr.write(text.decode(errors="replace"))


class Reader:
    """A model, and what it has read of each row.

    Args:
        path: of the GGUF file.
        threads: of the CPU.
        flash_attention: attention in one pass.

    Raises:
        ValueError: llama.cpp does not load it.
    """

    def __init__(self, path: str, threads: int, *, flash_attention: bool) -> None:
        options = llama_cpp.llama_model_default_params()
        options.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), options)
        if not self._model:
            raise ValueError("llama.cpp does not load it")
        self.vocabulary = int(llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model)))
        self._threads, self._flash_attention = threads, flash_attention
        self._context: Any = None
        self._cells = self._most_rows = 0
        self._batch = llama_cpp.llama_batch_init(BATCH_TOKENS, 0, 1)
        self._read: list[list[int]] = []

    def read(self, rows: Sequence[Sequence[int]], wanted: Sequence[int], *, fresh: bool) -> np.ndarray:
        """Read on in every row.

        Args:
            rows: token ids that follow, by row.
            wanted: behind how many of its last tokens, by row, logits are asked for.
            fresh: forget what was read before.

        Returns:
            [sum of wanted, vocabulary] float32.
        """
        if fresh:
            self._read = [[] for _ in rows]
        before = [len(row) for row in self._read]
        for read, new in zip(self._read, rows, strict=True):
            read.extend(new)
        if self._make_room():
            # A new context has read nothing.
            before = [0] * len(rows)
        elif fresh:
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)
        tokens = [
            (token, position, row, position >= len(read) - count)
            for row, (read, start, count) in enumerate(zip(self._read, before, wanted, strict=True))
            for position, token in enumerate(read[start:], start)
        ]
        parts = [self._decode(tokens[at : at + BATCH_TOKENS]) for at in range(0, len(tokens), BATCH_TOKENS)]
        return np.concatenate(parts)

    def _make_room(self) -> bool:
        """Whether a larger context had to be made."""
        cells, rows = sum(map(len, self._read)), len(self._read)
        if cells <= self._cells and rows <= self._most_rows:
            return False
        if self._context is not None:
            llama_cpp.llama_free(self._context)
        # Twice what is needed, so that decoding on does not read everything again at every step.
        self._cells = max(FEWEST_CELLS, self._cells, 2 * cells)
        self._most_rows = max(FEWEST_ROWS, self._most_rows, rows)
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_seq_max = self._cells, self._most_rows
        options.n_batch = options.n_ubatch = BATCH_TOKENS
        options.n_threads = options.n_threads_batch = self._threads
        # Rows share the cells: a long one may have more of them than its share.
        options.kv_unified = True
        # What is left is as `serve` runs the file.
        on, off = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED, llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        options.flash_attn_type = on if self._flash_attention else off
        self._context = llama_cpp.llama_init_from_model(self._model, options)
        if not self._context:
            raise MemoryError(f"llama.cpp makes no context for {self._cells} tokens in {self._most_rows} rows")
        return True

    def _decode(self, tokens: Sequence[tuple[int, int, int, bool]]) -> np.ndarray:
        batch = self._batch
        batch.n_tokens = len(tokens)
        for index, (token, position, row, asked) in enumerate(tokens):
            batch.token[index], batch.pos[index] = token, position
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, row
            batch.logits[index] = asked
        code = llama_cpp.llama_decode(self._context, batch)
        if code != 0:
            raise RuntimeError(f"llama_decode of {len(tokens)} tokens returned {code}")
        asked_for = [index for index, (*_, asked) in enumerate(tokens) if asked]
        logits = np.empty((len(asked_for), self.vocabulary), np.float32)
        for place, index in enumerate(asked_for):
            found = llama_cpp.llama_get_logits_ith(self._context, index)
            if not found:
                raise RuntimeError("llama.cpp gives no logits: is it a language model?")
            ctypes.memmove(logits[place].ctypes.data, found, logits[place].nbytes)
        return logits


def main(path: str, threads: int, requests: IO[bytes], answers: IO[bytes], *, flash_attention: bool) -> None:
    """Load, then answer until there are no more requests."""
    llama_cpp.llama_log_set(_log, ctypes.c_void_p(0))
    try:
        reader = Reader(path, threads, flash_attention=flash_attention)
    except ValueError as error:
        answers.write(json.dumps({"error": str(error)}).encode() + b"\n")
        answers.flush()
        return
    facts = {"vocabulary": reader.vocabulary, "most_rows": int(llama_cpp.llama_max_parallel_sequences())}
    answers.write(json.dumps(facts).encode() + b"\n")
    answers.flush()
    for line in requests:
        request = json.loads(line)
        logits = reader.read(request["rows"], request["wanted"], fresh=request["fresh"])
        answers.write(len(logits).to_bytes(8, sys.byteorder))
        answers.write(logits.data)
        answers.flush()


if __name__ == "__main__":
    # llama.cpp may print; what it prints is no answer.
    answering = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    main(sys.argv[1], int(sys.argv[2]), sys.stdin.buffer, answering, flash_attention=sys.argv[3] == "YES")
