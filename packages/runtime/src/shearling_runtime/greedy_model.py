"""A model in OpenVINO GenAI, with the operators where its file names them."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shearling_runtime.faults import ModelUnusable, RequestFault
from shearling_runtime.pipeline import MODEL, is_packed, pipeline

PART = "openvino"
"""Where an export keeps its IR."""
FILES = (
    MODEL,
    "openvino_model.bin",
    *(f"openvino_{part}.{suffix}" for part in ("tokenizer", "detokenizer") for suffix in ("xml", "bin")),
)


CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
"""What configurations call the tokens that a model reads; those of the toolchain."""


@dataclass(frozen=True)
class Continuation:
    """What one prompt gave, and how long it took.

    Attributes:
        token_ids: without the one that ended the text.
        ttft_s: until the first token.
        tpot_s: mean of the others; None where there was none.
    """

    token_ids: list[int]
    ttft_s: float
    tpot_s: float | None


class GreedyModel:
    """A model that continues tokens, greedily.

    Args:
        directory: an export, or the directory of its IR.
        threads: of the processor; None leaves them to OpenVINO.

    Attributes:
        packed: whether its file names our operators.
        load_s: how long loading took.

    Raises:
        ModelUnusable: a file is missing, or OpenVINO cannot load the model.
        RuntimeUnavailable: see `pipeline`.
    """

    def __init__(self, directory: Path, *, threads: int | None = None) -> None:
        self._directory = find_ir(directory)
        self.packed = is_packed(self._directory / MODEL)
        started_s = time.perf_counter()
        threading: dict[str, Any] = {} if threads is None else {"INFERENCE_NUM_THREADS": threads}
        self._pipeline = pipeline(self._directory, **threading)
        self.load_s = time.perf_counter() - started_s
        self._tokenizer = self._pipeline.get_tokenizer()

    def encode(self, prompt: str, *, chat: bool | None = None) -> list[int]:
        """Token ids of a prompt.

        Args:
            prompt: what to continue, or to answer.
            chat: use the chat template; None does so where there is one.

        Raises:
            RequestFault: `chat`, and there is no template.
            ModelUnusable: its tokenizer or template fails.
        """
        template = bool(self._tokenizer.get_original_chat_template())
        if chat and not template:
            raise RequestFault("--chat was given, and this tokenizer has no chat template", remedy="Use --no-chat")
        in_chat = template if chat is None else chat
        try:
            if in_chat:
                turn = [{"role": "user", "content": prompt}]
                prompt = self._tokenizer.apply_chat_template(turn, add_generation_prompt=True)
            if not in_chat:
                encode = importlib.import_module("shearling_runtime.loading.prompt_encoding").encode_prompt_in_genai
                return list(encode(prompt, self._tokenizer))
            ids = self._tokenizer.encode(prompt, add_special_tokens=False).input_ids.data[0]
        except RuntimeError as error:
            raise unusable_tokenizer(error, in_chat=in_chat, where=self._directory) from error
        return [int(token) for token in ids]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of tokens."""
        return str(self._tokenizer.decode(list(token_ids)))

    def generate(
        self,
        token_ids: Sequence[int],
        *,
        max_new_tokens: int,
        to_the_end: bool = False,
        on_text: Callable[[str], None] | None = None,
    ) -> Continuation:
        """Continue tokens.

        Args:
            token_ids: of one prompt.
            max_new_tokens: at least 1; the context must hold the prompt and these.
            to_the_end: no token ends the text before.
            on_text: gets the text while it is made; what it raises ends the text.

        Raises:
            RequestFault: too many tokens.
            ModelUnusable: OpenVINO cannot run the model; a packed weight is damaged, for example.
        """
        self._require_room(len(token_ids) + max_new_tokens)
        import numpy as np
        import openvino
        import openvino_genai

        found = self._pipeline.get_generation_config()
        # A fresh configuration: what the model's own says of sampling and penalties does not belong in a greedy run.
        config = openvino_genai.GenerationConfig()
        config.do_sample, config.max_new_tokens, config.ignore_eos = False, max_new_tokens, to_the_end
        ends = {*found.stop_token_ids, *([found.eos_token_id] if found.eos_token_id >= 0 else [])}
        if ends and not to_the_end:
            config.stop_token_ids = ends
            config.set_eos_token_id(min(ends))

        prompt = openvino.Tensor(np.asarray([token_ids], dtype=np.int64))

        def generate(*streamer: Callable[[str], Any]) -> Any:
            try:
                return self._pipeline.generate(prompt, config, *streamer)
            except RuntimeError as error:  # the operators look at their weights when they first see them
                raise self._unusable(error, "run") from error

        if on_text is None:
            result = generate()
        else:
            # The toolchain's own module, which the build of the wheel puts beside this one.
            stream = importlib.import_module("shearling_runtime.loading.genai_stream")
            result = stream.stream_text(generate, on_text)
        metrics, made = result.perf_metrics, [int(token) for token in result.tokens[0]]
        tpot_s = metrics.get_tpot().mean / 1e3 if len(made) > 1 else None
        if made and made[-1] in ends and not to_the_end:
            made.pop()
        return Continuation(made, ttft_s=metrics.get_ttft().mean / 1e3, tpot_s=tpot_s)

    def _unusable(self, error: RuntimeError, what: str) -> ModelUnusable:
        reason = str(error).strip().splitlines()[-1].strip()
        return ModelUnusable(f"OpenVINO cannot {what} it: {reason}", where=self._directory, remedy="Export it again")

    def _require_room(self, tokens: int) -> None:
        path = self._directory / "config.json"
        try:
            config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except ValueError as error:
            raise ModelUnusable(f"it is not JSON: {error}", where=path, remedy="Export it again") from error
        require_room(tokens, stated_context(config), where=self._directory)


def stated_context(config: Any) -> int | None:
    """Most tokens that a model reads, as its config.json says, or the part of that which is about text."""
    nested = config.get("text_config") if isinstance(config, dict) else None
    scopes = [scope for scope in (config, nested) if isinstance(scope, dict)]
    stated = (scope.get(key) for key in CONTEXT_KEYS for scope in scopes)
    return next((most for most in stated if type(most) is int and most > 0), None)


MINJA = "Minja's error: "
"""GenAI's engine of chat templates."""


def unusable_tokenizer(error: RuntimeError, *, in_chat: bool, where: Path) -> ModelUnusable:
    """The fault of a model whose prompt cannot be encoded.

    Args:
        error: what its runtime says.
        in_chat: whether the chat template was used.
        where: the model.
    """
    # One line of many, of which the last ones draw the place in a template.
    lines = str(error).strip().splitlines() or [type(error).__name__]
    reason = next((line for line in lines if line.startswith(MINJA)), lines[0]).removeprefix(MINJA).rstrip(":")
    return ModelUnusable(
        f"its tokenizer fails: {reason}", where=where, remedy="Use --no-chat" if in_chat else "Export it again"
    )


def require_room(tokens: int, most: Any, *, where: Path) -> None:
    """Check that a prompt and what shall follow it fit a context.

    Args:
        tokens: of both.
        most: what a document of the model says; anything else than a number says nothing.
        where: the model.

    Raises:
        RequestFault: they do not fit.
    """
    if isinstance(most, int) and tokens > most:
        raise RequestFault(
            f"the prompt and the new tokens are {tokens}, this model has a context of {most}",
            where=where,
            remedy="Shorten the prompt, or lower --max-new-tokens",
        )


def has_ir(directory: Path) -> bool:
    """Whether there is an IR, complete or not."""
    return any((place / MODEL).is_file() for place in (directory, directory / PART))


def find_ir(directory: Path) -> Path:
    """Where the IR is: an export, or the part of it with the IR.

    Raises:
        ModelUnusable: it is in neither, or not complete.
    """
    for place in (directory, directory / PART):
        if (place / MODEL).is_file():
            missing = [name for name in FILES if not (place / name).is_file()]
            if missing:
                raise ModelUnusable(f"{', '.join(missing)} is missing", where=place, remedy="Export it again")
            return place
    raise ModelUnusable(
        f"no OpenVINO model here: no {MODEL}",
        where=directory,
        remedy="Give an export with openvino or onnx-genai, or such a part; others run in Python: session_options()",
    )
