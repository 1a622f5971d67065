"""DeepSparse, to compare with: a decoder with static shapes, one engine for the prompt and one for a token.

`python -m benchmarks.peers decoder` writes such a graph and says what it takes and gives. DeepSparse compiles every
shape anew, for seconds; the cache is kept here, in arrays that the engine reads and that a new token is written into,
since its own wants another graph.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from serve.runtimes.deployment import Deployment
from serve.runtimes.greedy_loop import greedy_loop
from serve.runtimes.runtime import Decoding, Generation, RunOptions, RuntimeFacts, only_row
from serve.runtimes.tokenization import TextTokenizer, TokenizedRuntime
from shearling.errors import ArtefactCorrupt, UsageError
from shearling.strict_json import read_json

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

CACHE_STEP = 64
"""Tokens: room in the cache comes in steps of so many, so that few shapes are compiled."""
HIDDEN = -1e9


class DeepSparseRuntime(TokenizedRuntime):
    """Float32, which is all that DeepSparse computes decoders of ours in.

    Raises:
        UsageError: another precision was asked for.
    """

    def __init__(self, deployment: Deployment, options: RunOptions) -> None:
        if options.precision not in ("default", "fp32"):
            raise UsageError("DeepSparse computes in fp32 here", where=deployment.label, remedy="Leave --precision out")
        self._deployment = deployment
        self._path = deployment.model_file
        self._threads = options.threads
        config = read_json(deployment.directory / "config.json")
        self._layers, self._heads, self._width = (
            int(config[name]) for name in ("num_hidden_layers", "num_key_value_heads", "head_dim")
        )
        self._group = int(config["num_attention_heads"]) // self._heads
        self._engines: dict[tuple[int, int], Any] = {}
        self._tokenizer = TextTokenizer(deployment.directory)
        self.facts = RuntimeFacts(
            runtime=f"DeepSparse {importlib.metadata.version('deepsparse')}",
            provider="CPU",
            precision="fp32",
            settings={
                "threads": str(self._threads or "default"),
                "cache": "outside of the engine",
                "compiled": "for every length, before its first run",
            },
            timing_source="monotonic clock around each step of the greedy loop of serve.runtimes.greedy_loop",
        )

    def generate(self, rows: Sequence[Sequence[int]], work: Decoding) -> Generation:
        """See `Runtime.generate`.

        Raises:
            ArtefactCorrupt: DeepSparse does not compile the graph for these lengths.
            UsageError: more than one row.
        """
        import numpy as np

        prompt = only_row(rows, deployment=self._deployment)
        length = len(prompt)
        room = -(-(length + work.max_new_tokens) // CACHE_STEP) * CACHE_STEP
        self._compile({(length, 1), (1, room)})
        cache = _Cache(2 * self._layers, (self._heads, room, self._width), self._group)

        def step(tokens: Sequence[int]) -> int:
            if cache.seen:
                token, new = self._step(tokens, cache.seen, cache.mask, cache.parts)
            else:
                empty = [np.zeros((1, self._heads, 1, self._width), np.float32)] * (2 * self._layers)
                token, new = self._step(tokens, 0, _prompt_mask(length, self._group), empty)
            cache.append(new)
            return token

        return greedy_loop(step, prompt, work, decoder=self)

    def close(self) -> None:
        """Give memory back."""
        self._engines.clear()

    def _compile(self, shapes: set[tuple[int, int]]) -> None:
        """Engines for these numbers of new tokens and of places in the cache, and for no others: each holds all
        weights.
        """
        import deepsparse

        self._engines = {shape: engine for shape, engine in self._engines.items() if shape in shapes}
        for length, past in shapes - self._engines.keys():
            inputs = [[1, length], [1, length], [1, self._group * length, past + length]]
            inputs += [[1, self._heads, past, self._width]] * (2 * self._layers)
            try:
                self._engines[length, past] = deepsparse.Engine(
                    str(self._path), batch_size=1, num_cores=self._threads, input_shapes=inputs
                )
            except (RuntimeError, ValueError) as error:
                raise ArtefactCorrupt(f"DeepSparse cannot compile it: {error}", where=self._path) from error

    def _step(
        self, tokens: Sequence[int], seen: int, mask: npt.NDArray[np.float32], cache: list[npt.NDArray[np.float32]]
    ) -> tuple[int, list[npt.NDArray[np.float32]]]:
        """The likeliest next token, and what these tokens add to the cache."""
        import numpy as np

        positions = np.arange(seen, seen + len(tokens), dtype=np.int64)
        engine = self._engines[len(tokens), cache[0].shape[2]]
        logits, *new = engine.run([np.asarray(tokens, np.int64)[None], positions[None], mask, *cache], val_inp=False)
        return int(np.argmax(logits)), new


class _Cache:
    """Keys and values of all layers, and what of them a token may see: whatever is there, and itself behind the end."""

    def __init__(self, parts: int, shape: tuple[int, int, int], group: int) -> None:
        import numpy as np

        self.parts = [np.zeros((1, *shape), np.float32) for _ in range(parts)]
        self.mask = np.full((1, group, shape[1] + 1), HIDDEN, np.float32)
        self.mask[:, :, -1] = 0
        self.seen = 0

    def append(self, new: list[npt.NDArray[np.float32]]) -> None:
        """Write what one or several tokens have left."""
        stop = self.seen + new[0].shape[2]
        for whole, part in zip(self.parts, new, strict=True):
            whole[:, :, self.seen : stop] = part
        self.mask[:, :, self.seen : stop] = 0
        self.seen = stop


def _prompt_mask(length: int, group: int) -> npt.NDArray[np.float32]:
    """Every token sees those before it and itself; the one place of the empty cache is hidden, since no size may be
    0.
    """
    import numpy as np

    mask = np.triu(np.full((length, length), HIDDEN, np.float32), 1)
    return np.tile(np.pad(mask, ((0, 0), (1, 0)), constant_values=HIDDEN), (group, 1))[None]
