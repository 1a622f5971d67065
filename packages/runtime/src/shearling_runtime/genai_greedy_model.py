"""A model in ONNX Runtime GenAI, with the operators where its file names them; the counterpart of `GreedyModel`."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from shearling_runtime.faults import ModelUnusable, RequestFault
from shearling_runtime.greedy_model import Continuation, require_room, unusable_tokenizer
from shearling_runtime.onnx_genai import CONFIG, DOMAIN_IMPORT, GRAPH, open_model, read_config

PART = "onnx-genai"
"""Where an export keeps it."""


class GenAIGreedyModel:
    """A model that continues tokens, greedily.

    Args:
        directory: holds `genai_config.json`; see `find_genai`.
        threads: of the processor; None leaves them to ONNX Runtime.

    Attributes:
        packed: whether its file names our operators.
        load_s: how long loading took.

    Raises:
        ModelUnusable: a file is missing, or GenAI cannot load the model.
        RuntimeUnavailable: see `load_genai_model`.
    """

    def __init__(self, directory: Path, *, threads: int | None = None) -> None:
        self._directory = directory
        document = read_config(directory / CONFIG)
        self._most = document["model"].get("context_length")
        self._ends = _numbers(document["model"].get("eos_token_id"))
        self._beginning = _beginning(directory / "tokenizer_config.json")
        graph = directory / GRAPH
        try:
            self.packed = DOMAIN_IMPORT in graph.read_bytes()
        except OSError as error:
            raise ModelUnusable(
                f"its graph cannot be read: {error.strerror}", where=graph, remedy="Export it again"
            ) from error
        started_s = time.perf_counter()
        options = {} if threads is None else {"intra_op_num_threads": threads}
        # What ends a text is looked for here: a benchmark goes on to the end.
        self._model = open_model(directory, options, packed=self.packed, ends=False)
        self.load_s = time.perf_counter() - started_s
        import onnxruntime_genai

        try:
            self._tokenizer = onnxruntime_genai.Tokenizer(self._model)
        except RuntimeError as error:
            raise ModelUnusable(f"its tokenizer does not load: {error}", where=directory) from error

    def encode(self, prompt: str, *, chat: bool | None = None) -> list[int]:
        """Token ids of a prompt.

        Args:
            prompt: what to continue, or to answer.
            chat: use the chat template; None does so where there is one.

        Raises:
            RequestFault: `chat`, and there is no template.
            ModelUnusable: its tokenizer or template fails.
        """
        template = (self._directory / "chat_template.jinja").is_file()
        if chat and not template:
            raise RequestFault("--chat was given, and this tokenizer has no chat template", remedy="Use --no-chat")
        in_chat = template if chat is None else chat
        try:
            if in_chat:
                turn = json.dumps([{"role": "user", "content": prompt}])
                prompt = self._tokenizer.apply_chat_template(turn, add_generation_prompt=True)
                # It writes its own special tokens.
                return self._encode(prompt, False)
            encode = importlib.import_module("shearling_runtime.loading.prompt_encoding").encode_prompt
            return list(encode(prompt, self._encode, beginning=self._beginning, ends=self._ends))
        except RuntimeError as error:
            raise unusable_tokenizer(error, in_chat=in_chat, where=self._directory) from error

    def _encode(self, text: str, special: bool) -> list[int]:
        self._tokenizer.update_options(add_special_tokens=str(special).lower())
        return [int(token) for token in self._tokenizer.encode(text)]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of tokens."""
        import numpy as np

        return str(self._tokenizer.decode(np.asarray(token_ids, dtype=np.int32)))

    def generate(
        self,
        token_ids: Sequence[int],
        *,
        max_new_tokens: int,
        to_the_end: bool = False,
        on_text: Callable[[str], None] | None = None,
    ) -> Continuation:
        """Continue tokens; see `GreedyModel.generate`."""
        length = len(token_ids) + max_new_tokens
        require_room(length, self._most, where=self._directory)
        ends = frozenset() if to_the_end else self._ends
        stream = None if on_text is None else self._tokenizer.create_stream()
        made: list[int] = []
        started_s, times_s = time.perf_counter(), []
        try:
            for token in self._tokens(token_ids, length):
                times_s.append(time.perf_counter())
                if token in ends:
                    break
                made.append(token)
                if stream is not None and on_text is not None:
                    on_text(stream.decode(token))
        except RuntimeError as error:
            raise ModelUnusable(f"ONNX Runtime GenAI cannot run it: {error}", where=self._directory) from error
        further = len(times_s) - 1
        return Continuation(
            made, ttft_s=times_s[0] - started_s, tpot_s=(times_s[-1] - times_s[0]) / further if further else None
        )

    def _tokens(self, token_ids: Sequence[int], length: int) -> Any:
        import numpy as np
        import onnxruntime_genai

        params = onnxruntime_genai.GeneratorParams(self._model)
        # The toolchain's own module, which the build of the wheel puts beside this one.
        greedy = importlib.import_module("shearling_runtime.loading.genai_document").GREEDY
        params.set_search_options(max_length=length, **greedy)
        generator = onnxruntime_genai.Generator(self._model, params)
        generator.append_tokens(np.asarray(token_ids, dtype=np.int32))
        while not generator.is_done():
            generator.generate_next_token()
            yield int(generator.get_next_tokens()[0])


def find_genai(directory: Path) -> Path | None:
    """Where the document of GenAI is: in a directory, or in the part of an export; None where there is none."""
    return next((place for place in (directory, directory / PART) if (place / CONFIG).is_file()), None)


def _numbers(value: Any) -> frozenset[int]:
    return frozenset(item for item in (value if isinstance(value, list) else [value]) if isinstance(item, int))


def _beginning(path: Path) -> str:
    """The beginning-of-text token that a tokenizer's configuration names."""
    if not path.is_file():
        return ""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelUnusable(f"its tokenizer does not load: {error}", where=path) from error
    token = document.get("bos_token") if isinstance(document, dict) else None
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else ""
