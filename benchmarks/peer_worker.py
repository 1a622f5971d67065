"""DeepSparse in its own environment, driven over a pipe; nothing of this project is imported here.

One JSON line in, one JSON line out, as in `serve.bench.worker`:

    {"do": "load", "path": ..., "threads": N}  -> {"runtime": name and version}   an ONNX file of one input x
    {"do": "run", "rows": N, "repeats": N}     -> {"seconds": [...]}
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
from typing import Any

import numpy as np


class DeepSparse:
    """One compiled ONNX graph with a fixed number of rows."""

    def __init__(self, path: str, threads: int) -> None:
        self._path, self._threads = path, threads
        self._engines: dict[int, Any] = {}
        self.name = f"DeepSparse {importlib.metadata.version('deepsparse')}"

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run the graph as often as asked."""
        import deepsparse

        rows = request["rows"]
        if rows not in self._engines:
            self._engines[rows] = deepsparse.Engine(self._path, batch_size=rows, num_cores=self._threads)
        engine = self._engines[rows]
        x = [np.random.default_rng(0).standard_normal((rows, request["columns"]), dtype=np.float32)]
        seconds = []
        for _ in range(request["repeats"]):
            started_s = time.perf_counter()
            engine.run(x, val_inp=False)
            seconds.append(time.perf_counter() - started_s)
        return {"seconds": seconds}


def main() -> None:
    """Answer until the input ends."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # The runtimes write to descriptor 1 as they please.
    os.dup2(2, 1)
    peer: DeepSparse | None = None
    for line in sys.stdin:
        request = json.loads(line)
        if peer is None:
            peer = DeepSparse(request["path"], request["threads"])
            reply: dict[str, Any] = {"runtime": peer.name}
        else:
            reply = peer.answer(request)
        channel.write(json.dumps(reply) + "\n")
        channel.flush()


if __name__ == "__main__":
    main()
