"""A GGUF file in llama.cpp, through the low-level `eval` of llama-cpp-python: no sampler, no cache of prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serve.visitor.fault import VisitorFault, last_words
from serve.visitor.greedy import TIMING_SOURCE, Integers, decode_greedily
from serve.visitor.llama_cpp_build import build_settings

MOST_CONTEXT_TOKENS = 4096
"""Memory for so many positions is taken at once, however many the model knows."""
BATCH_TOKENS = 512
FLASH_ATTENTION = "FLASH_ATTENTION"


class VisitedGguf:
    """A GGUF file on the CPU.

    Args:
        file: the model.
        options: as of `serve.runtimes.runtime.RunOptions`.
        own: `FLASH_ATTENTION`, YES unless it is NO, as llama.cpp's own programs choose.

    Raises:
        VisitorFault: llama.cpp does not load it, a precision was asked for, or a property is neither YES nor NO.
    """

    def __init__(self, file: Path, options: Mapping[str, Any], own: Mapping[str, str]) -> None:
        import llama_cpp

        self._library = llama_cpp
        if options["precision"] != "default":
            raise VisitorFault(
                "UsageError",
                "llama.cpp computes as the types of a GGUF file want it",
                where=file,
                remedy="Leave --precision out",
            )
        threads = options["threads"]
        flash_attention = own.get(FLASH_ATTENTION, "YES")
        if flash_attention not in ("YES", "NO"):
            raise VisitorFault(
                "UsageError",
                f"it is YES or NO, not {flash_attention}",
                where=FLASH_ATTENTION,
                remedy=f"Give {FLASH_ATTENTION}=YES or {FLASH_ATTENTION}=NO",
            )
        try:
            self._model = llama_cpp.Llama(
                str(file),
                n_ctx=MOST_CONTEXT_TOKENS,
                n_batch=BATCH_TOKENS,
                n_threads=threads,
                n_threads_batch=threads,
                flash_attn=flash_attention == "YES",
                use_mmap=not options["huge_pages"],  # a file that is mapped cannot move into huge pages
                verbose=False,
            )
        except (ValueError, RuntimeError) as error:
            raise VisitorFault(
                "ArtefactCorrupt", f"llama.cpp does not load it: {last_words(error)}", where=file
            ) from error
        self.facts = {
            "runtime": f"llama.cpp (llama-cpp-python {_version()})",
            "provider": "CPU",
            "precision": "as stored",
            "settings": {
                "threads": str(self._model.n_threads),
                "context": str(MOST_CONTEXT_TOKENS),
                FLASH_ATTENTION: flash_attention,
                **build_settings(llama_cpp),
            },
            "timing_source": TIMING_SOURCE,
        }

    def generate(self, rows: Sequence[Sequence[int]], new_tokens: int) -> dict[str, Any]:
        """See `serve.visitor.greedy.decode_greedily`.

        Raises:
            VisitorFault: several rows, or more tokens than the context takes.
        """
        if len(rows) != 1:
            raise VisitorFault(
                "UsageError", f"llama.cpp decodes one prompt at a time, not {len(rows)}", remedy="Use --batch-size 1"
            )
        if len(rows[0]) + new_tokens > MOST_CONTEXT_TOKENS:
            raise VisitorFault(
                "UsageError",
                f"{len(rows[0])} prompt tokens and {new_tokens} new ones exceed the {MOST_CONTEXT_TOKENS} positions "
                "that llama.cpp is given here",
                remedy="Shorten the prompt, or ask for fewer tokens",
            )
        self._model.reset()
        return decode_greedily(self._step, rows, new_tokens)

    def _step(self, chunk: Integers, seen: int) -> Integers:
        self._model.eval(chunk[0].tolist())
        logits = self._library.llama_get_logits_ith(self._model.ctx, -1)
        return np.ctypeslib.as_array(logits, shape=(self._model.n_vocab(),))[None].argmax(axis=-1)


def _version() -> str:
    import importlib.metadata

    return importlib.metadata.version("llama-cpp-python")
