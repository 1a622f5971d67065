"""llama.cpp through llama-cpp-python: GGUF files, to compare with.

Decoding goes through its low-level `eval`, so that every token is timed and nothing but the model is: no sampler, no
cache of prompts.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serve.runtimes.deployment import Deployment, ModelFacts
from serve.runtimes.greedy_loop import greedy_loop
from serve.runtimes.runtime import Decoding, Generation, RunOptions, RuntimeFacts, only_row
from serve.runtimes.tokenization import render_turn
from serve.visitor.llama_cpp_build import build_settings
from shearling.errors import ArtefactCorrupt, UsageError
from shearling.kernel.loading.prompt_encoding import encode_prompt
from shearling.model.gguf_header import is_gguf, read_header
from shearling.registry.runtimes import FLASH_ATTENTION
from shearling.target import read_switch

MOST_CONTEXT_TOKENS = 4096
"""Memory for so many positions is taken at once, however many the model knows."""
BATCH_TOKENS = 512
PIECE_BYTES = 64
"""That most tokens fit in."""


def read_model_facts(path: Path) -> ModelFacts | None:
    """What the header of a GGUF file says of its model; None for any other file.

    Raises:
        ArtefactCorrupt: it begins like one, and cannot be read.
    """
    if not is_gguf(path):
        return None
    header = read_header(path)
    fields = header.fields
    architecture = fields.get("general.architecture")
    vocabulary = fields.get(f"{architecture}.vocab_size") or len(fields.get("tokenizer.ggml.tokens", ()))
    return ModelFacts(
        context_tokens=fields.get(f"{architecture}.context_length"),
        vocabulary=vocabulary or None,
        end_ids=header.end_ids,
    )


class LlamaCppRuntime:
    """A GGUF file on the CPU.

    Raises:
        ArtefactCorrupt: llama.cpp does not load it.
        UsageError: a precision was asked for, which the file decides, or a property is neither YES nor NO.
    """

    def __init__(self, deployment: Deployment, options: RunOptions) -> None:
        import llama_cpp

        if options.precision != "default":
            raise UsageError(
                "llama.cpp computes as the types of a GGUF file want it",
                where=deployment.label,
                remedy="Leave --precision out",
            )
        file = deployment.model_file
        flash_attention = read_switch(deployment.properties, FLASH_ATTENTION, default=True)
        self._deployment = deployment
        self._context = min(deployment.context_tokens or MOST_CONTEXT_TOKENS, MOST_CONTEXT_TOKENS)
        try:
            self._model: Any = llama_cpp.Llama(
                str(file),
                n_ctx=self._context,
                n_batch=BATCH_TOKENS,
                n_threads=options.threads,
                n_threads_batch=options.threads,
                flash_attn=flash_attention,
                use_mmap=not options.huge_pages,  # a file that is mapped cannot move into huge pages
                verbose=False,
            )
        except (ValueError, RuntimeError) as error:
            raise ArtefactCorrupt(f"llama.cpp does not load it: {error}", where=file) from error
        fields = read_header(file).fields
        self._template: str | None = fields.get("tokenizer.chat_template")
        file_type = fields.get("general.file_type")
        self.facts = RuntimeFacts(
            runtime=f"llama.cpp (llama-cpp-python {importlib.metadata.version('llama-cpp-python')})",
            provider="CPU",
            precision="as stored" if file_type is None else f"file type {file_type}",
            settings={
                "threads": str(self._model.n_threads),
                "context": str(self._context),
                FLASH_ATTENTION: "YES" if flash_attention else "NO",
                **build_settings(llama_cpp),
            },
            timing_source="monotonic clock after each call of llama.cpp's eval and the choice of the likeliest token",
        )

    def has_chat_template(self) -> bool:
        """Whether `encode` can format a chat turn."""
        return self._template is not None

    def encode(self, prompt: str, *, chat: bool) -> list[int]:
        """Token ids of a prompt, by the tokenizer in the file.

        Raises:
            UsageError: `chat`, and there is no template.
            ModelUnsupported: the template fails.
        """
        if not chat:
            return encode_prompt(
                prompt,
                lambda text, special: list(self._model.tokenize(text.encode(), add_bos=special, special=True)),
                beginning=self._name_of(self._model.token_bos()),
                ends=[self._model.token_eos()],
            )
        ends = {
            "eos_token": self._name_of(self._model.token_eos()),
            "bos_token": self._name_of(self._model.token_bos()),
        }
        # Not with llama-cpp-python's own formatter, which knows less of Jinja than templates for transformers use.
        turn = render_turn(self._template, prompt, ends, where=self._deployment.model_file)
        return list(self._model.tokenize(turn.encode(), add_bos=False, special=True))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of tokens, special ones left out."""
        return b"".join(map(self._piece, token_ids)).decode(errors="replace")

    def generate(self, rows: Sequence[Sequence[int]], work: Decoding) -> Generation:
        """See `Runtime.generate`.

        Raises:
            UsageError: more than one row, or more tokens than the context was made for.
        """
        prompt = only_row(rows, deployment=self._deployment)
        if len(prompt) + work.max_new_tokens > self._context:
            raise UsageError(
                f"{len(prompt)} prompt tokens and {work.max_new_tokens} new ones exceed the "
                f"{self._context} positions that llama.cpp is given here",
                where=self._deployment.label,
                remedy="Shorten the prompt, or ask for fewer tokens",
            )
        self._model.reset()
        return greedy_loop(self._next, prompt, work, decoder=self)

    def close(self) -> None:
        """Give memory back."""
        self._model.close()

    def _next(self, tokens: Sequence[int]) -> int:
        """Read tokens; the likeliest behind them."""
        import llama_cpp
        import numpy as np

        self._model.eval(list(tokens))
        # Its own `scores` are filled only where logits of all tokens are kept, which would cost a product with the
        # head for each.
        logits = llama_cpp.llama_get_logits_ith(self._model.ctx, -1)
        return int(np.argmax(np.ctypeslib.as_array(logits, shape=(self._model.n_vocab(),))))

    def _name_of(self, token: int) -> str:
        """Of a special token; empty where the vocabulary has none, whose number is negative."""
        return self._piece(token, special=True).decode(errors="replace") if token >= 0 else ""

    def _piece(self, token: int, *, special: bool = False) -> bytes:
        """Of a text; llama-cpp-python's own `detokenize` cuts what is longer than 32 bytes."""
        import ctypes

        import llama_cpp

        vocabulary = llama_cpp.llama_model_get_vocab(self._model.model)
        room = PIECE_BYTES
        while True:
            buffer = ctypes.create_string_buffer(room)
            written = llama_cpp.llama_token_to_piece(vocabulary, token, buffer, room, 0, special)
            if written >= 0:
                return buffer.raw[:written]
            # It says how much it needs.
            room = -written
